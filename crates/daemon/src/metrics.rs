//! The metrics page, and what the process itself costs.
//!
//! Figures come from `/proc` at the moment of a scrape; proc(5) names the fields.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use hyper::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::http::{Response, text, with_type};

/// `USER_HZ`: the unit of times in `/proc/PID/stat`, 100 on every architecture that Linux runs Rust on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The registry in the OpenMetrics text format.
pub fn page(registry: &Mutex<Registry>) -> Response {
    let mut body = String::new();
    let registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
    match prometheus_client::encoding::text::encode(&mut body, &registry) {
        Ok(()) => {
            with_type(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// Adds `process_*`: resident memory, CPU time, start time and open files, under the names that
/// Prometheus's own client libraries use.
pub fn register_process(registry: &mut Registry) {
    registry.register_collector(Box::new(ProcessCollector));
}

#[derive(Debug)]
struct ProcessCollector;

#[derive(Debug, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    /// Unix time.
    start_seconds: f64,
    resident_bytes: i64,
    open_files: i64,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        // A process that cannot read its own /proc shows no figures; the others still count.
        let Some(usage) = usage() else { return Ok(()) };
        let cpu = ConstCounter::new(usage.cpu_seconds);
        let metric = encoder.encode_descriptor(
            "process_cpu",
            "CPU time spent, user and system",
            Some(&Unit::Seconds),
            cpu.metric_type(),
        )?;
        cpu.encode(metric)?;
        let gauges = [
            ("process_start_time_seconds", "When the process started, Unix time", usage.start_seconds),
            ("process_resident_memory_bytes", "Memory in RAM", usage.resident_bytes as f64),
            ("process_open_fds", "Open file descriptors", usage.open_files as f64),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

fn usage() -> Option<Usage> {
    parse(
        &std::fs::read_to_string("/proc/self/stat").ok()?,
        &std::fs::read_to_string("/proc/self/status").ok()?,
        &std::fs::read_to_string("/proc/stat").ok()?,
        std::fs::read_dir("/proc/self/fd").ok()?.count(),
    )
}

/// From the texts of `/proc/PID/stat`, `/proc/PID/status` and `/proc/stat`.
fn parse(stat: &str, status: &str, system: &str, open_files: usize) -> Option<Usage> {
    // The second field is the program's name in brackets and may hold spaces: count from behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    let value_of = |text: &str, key: &str| -> Option<i64> {
        text.lines().find_map(|l| l.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
    };
    Some(Usage {
        cpu_seconds: (ticks(14)? + ticks(15)?) / TICKS_PER_SECOND,
        start_seconds: value_of(system, "btime")? as f64 + ticks(22)? / TICKS_PER_SECOND,
        resident_bytes: value_of(status, "VmRSS:")? * 1024,
        open_files: i64::try_from(open_files).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_behind_a_program_name_with_brackets_and_spaces() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 900 0 0 0 150 50 0 0 20 0 3 0 1000 9999 25 1";
        let status = "Name:\ta\nVmHWM:\t  400 kB\nVmRSS:\t  300 kB\n";
        let usage = parse(stat, status, "cpu 1 2\nbtime 1000000\n", 4);
        let expected =
            Usage { cpu_seconds: 2.0, start_seconds: 1_000_010.0, resident_bytes: 300 * 1024, open_files: 4 };
        assert_eq!(usage, Some(expected));
        assert_eq!(parse("", status, "", 4), None);
    }

    #[test]
    fn the_page_is_open_metrics_with_this_process_in_it() {
        let mut registry = Registry::default();
        register_process(&mut registry);
        let response = page(&Mutex::new(registry));
        let kind = response.headers()[hyper::header::CONTENT_TYPE].to_str().unwrap().to_owned();
        assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
        let usage = usage().unwrap();
        assert!(usage.resident_bytes > 0 && usage.open_files > 2);
        let mut body = String::new();
        let mut again = Registry::default();
        register_process(&mut again);
        prometheus_client::encoding::text::encode(&mut body, &again).unwrap();
        for name in [
            "process_cpu_seconds_total ",
            "process_start_time_seconds ",
            "process_resident_memory_bytes ",
            "process_open_fds ",
        ] {
            assert!(body.lines().any(|l| l.starts_with(name)), "{name} is missing in\n{body}");
        }
    }
}
