//! What a configuration asks for and does not get, each with what happens instead: said once, at
//! the start. What makes no difference here is not mentioned.

use super::configuration::KubeProxyConfiguration;

/// One sentence for each.
pub fn unheeded(configuration: &KubeProxyConfiguration) -> Vec<String> {
    let c = configuration;
    let mut said = Vec::new();
    let mut say = |asked: bool, what: String| {
        if asked {
            said.push(what);
        }
    };
    let mode = c.mode.as_str();
    say(
        mode != "nftables",
        format!("mode {mode:?}: there is one mode here, which does as kube-proxy's nftables mode does"),
    );
    say(c.enable_profiling, "enableProfiling: there is no /debug/pprof".to_owned());
    say(
        !c.show_hidden_metrics_for_version.is_empty(),
        "showHiddenMetricsForVersion: no metric is hidden".to_owned(),
    );
    say(!c.logging.vmodule.is_empty(), "logging.vmodule: RUST_LOG says what is logged".to_owned());
    said
}
