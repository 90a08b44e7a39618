//! Compiles the XDP programs.

use std::path::Path;

fn main() -> anyhow::Result<()> {
    for source in ["src/xdp/balancer.bpf.c", "src/xdp/pass.bpf.c", "examples/xdp_cost.bpf.c"] {
        bpf_build::compile(Path::new(source))?;
    }
    Ok(())
}
