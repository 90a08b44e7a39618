//! The files in deploy/metal-lb.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "a part of test binaries")]

pub fn read(name: &str) -> String {
    let path = format!("{}/../deploy/metal-lb/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The value of a key of the systemd unit.
pub fn unit(key: &str) -> String {
    let unit = read("metal-lb.service");
    let value = unit.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("the unit has no {key}")).to_owned()
}

/// What the unit allows the program, as setpriv(1) names it: `net_admin`.
pub fn capabilities() -> impl Iterator<Item = String> {
    let names = unit("CapabilityBoundingSet");
    names.split(' ').map(|c| c.strip_prefix("CAP_").unwrap().to_lowercase()).collect::<Vec<_>>().into_iter()
}
