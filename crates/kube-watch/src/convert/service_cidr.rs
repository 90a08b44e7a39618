//! `networking.k8s.io/v1.ServiceCIDR` to [`ServiceCidr`].

use service_model::ServiceCidr;

use super::parse::{Problems, cidr, list, object_name};
use crate::wire;

/// `None` when it has no name.
pub(crate) fn service_cidr(wire: &wire::ServiceCidr, problems: &mut Problems) -> Option<ServiceCidr> {
    let name = object_name(&wire.metadata, problems)?.name().into();
    Some(ServiceCidr { name, networks: list(problems, "cidr", &wire.spec.cidrs, cidr) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Detail, Nodes, WatchConfig, read_dir};
    use service_model::{Change, Object};

    #[test]
    fn networks_lose_host_bits_and_what_is_no_network_is_named() {
        let wire = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.1/12", "fd00:10:96::/112", "10.96.0.0/33"]}
        }));
        let mut problems = Problems::new();
        let seen = service_cidr(&wire.unwrap(), &mut problems).unwrap();
        let networks = ["10.96.0.0/12", "fd00:10:96::/112"].map(|network| network.parse().unwrap());
        assert_eq!(seen, ServiceCidr { name: "kubernetes".into(), networks: networks.to_vec() });
        assert_eq!(problems, ["cidr \"10.96.0.0/33\" cannot be read and is left out"]);
    }

    #[test]
    fn a_folder_has_them_too() {
        let text = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: [10.112.0.0/24]}\n";
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("more.yaml"), text).unwrap();
        let asked = |service_cidrs| WatchConfig {
            services: false,
            slices: false,
            nodes: Nodes::None,
            service_cidrs,
            detail: Detail::Dataplane,
        };
        let found = |service_cidrs| {
            let changes = read_dir(folder.path(), &asked(service_cidrs)).unwrap();
            let found = changes.into_iter().filter_map(|change| match change {
                Change::Apply(Object::ServiceCidr(found)) => Some(found.networks),
                _ => None,
            });
            found.collect::<Vec<_>>()
        };
        assert_eq!(found(true), [["10.112.0.0/24".parse().unwrap()]]);
        assert_eq!(found(false), Vec::<Vec<ipnet::IpNet>>::new());
    }
}
