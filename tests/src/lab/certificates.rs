//! The authority of the balancer tier, and the certificates that it signs.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};

/// Writes `ca.crt`, `NAME.crt` and `NAME.key` for every host and the controller.
pub(super) fn write(folder: &Path, controller: &str, hosts: &[(String, Ipv4Addr)]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "lab balancer tier");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    std::fs::write(folder.join("ca.crt"), authority.pem())?;
    let controller = (controller.to_owned(), None);
    let hosts = hosts.iter().map(|(name, address)| (name.clone(), Some(*address)));
    for (name, address) in std::iter::once(controller).chain(hosts) {
        let mut params = CertificateParams::new(vec![name.clone()])?;
        params.subject_alt_names.extend(address.map(|a| SanType::IpAddress(IpAddr::V4(a))));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        std::fs::write(folder.join(format!("{name}.crt")), params.signed_by(&key, &authority)?.pem())?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
