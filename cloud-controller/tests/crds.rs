//! `deploy/crds` holds what the code understands, byte for byte.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::path::Path;

use cloud_controller::metal::crds;

#[test]
fn the_crds_in_deploy_are_those_of_the_code() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    for (name, definition) in crds::definitions() {
        let yaml = serde_yaml_ng::to_string(&definition).unwrap();
        let file = folder.join(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &yaml).unwrap();
        }
        let found = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(found == yaml, "{}: run UPDATE_GOLDEN=1 cargo test -p cloud-controller", file.display());
    }
}
