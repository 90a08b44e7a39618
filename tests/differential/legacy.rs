//! Addresses with leading zeros, as API servers took them before `StrictIPCIDRValidation`, and as they
//! still are in clusters that were updated.

use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::cases::State;

/// `172.030.000.041` for `172.30.0.41`, of networks too; there is no such way to write IPv6.
pub(crate) fn spelt(text: &str) -> String {
    if text.contains(':') {
        return text.to_owned();
    }
    let (address, length) = text.split_at(text.find('/').unwrap_or(text.len()));
    let octets: Vec<String> = address.split('.').map(|octet| format!("{octet:0>3}")).collect();
    octets.join(".") + length
}

/// The address, spelt as the text is that it replaces.
pub(crate) fn spelt_like(text: &str, address: IpAddr) -> String {
    let plain = address.to_string();
    if spelt(text) == text { spelt(&plain) } else { plain }
}

/// An address in either spelling.
///
/// # Errors
/// When it is none.
pub(crate) fn parse(text: &str) -> Result<IpAddr> {
    let octet = |text: &str| Ok(text.parse::<u8>()?.to_string());
    let plain = match text.contains(':') {
        true => Ok(text.to_owned()),
        false => text.split('.').map(octet).collect::<Result<Vec<_>>>().map(|octets| octets.join(".")),
    };
    plain.and_then(|plain| Ok(plain.parse()?)).with_context(|| format!("reading the address {text}"))
}

/// Spells every address that is not the API server's own choice.
pub(crate) fn spell(state: &mut State) {
    let spec = state.service.spec.get_or_insert_default();
    let status = state.service.status.get_or_insert_default();
    let ingress = status.load_balancer.get_or_insert_default().ingress.iter_mut().flatten();
    let endpoints = state.slices.iter_mut().flat_map(|slice| slice.endpoints.iter_mut().flatten());
    let texts = spec.external_ips.iter_mut().flatten();
    let texts = texts.chain(spec.load_balancer_source_ranges.iter_mut().flatten());
    let texts = texts.chain(ingress.filter_map(|ingress| ingress.ip.as_mut()));
    for text in texts.chain(endpoints.flat_map(|endpoint| &mut endpoint.addresses)) {
        *text = spelt(text);
    }
}
