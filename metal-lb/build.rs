//! Compiles the XDP programs.

use std::path::Path;

fn main() -> anyhow::Result<()> {
    for source in ["src/xdp/balancer.bpf.c", "src/xdp/pass.bpf.c"] {
        bpf_build::compile(Path::new(source))?;
    }
    Ok(())
}
