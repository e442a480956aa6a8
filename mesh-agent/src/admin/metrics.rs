//! The metrics page: connections as `telemetry` counts them, then what the kernel, control and certificates say, asked at
//! every scrape.

use std::{
    fmt::{self, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Node, Readiness};
use crate::{certificates::CertificateStatus, drain};

/// Ends an OpenMetrics page.
const END: &str = "# EOF\n";

/// The whole page.
///
/// # Errors
/// A collector failed to write.
pub(super) fn page(node: &Node) -> Result<String, fmt::Error> {
    let connections = node.telemetry.encode()?;
    let mut page = Page(connections.strip_suffix(END).unwrap_or(&connections).to_owned());
    agent(&mut page, node)?;
    listeners(&mut page, node)?;
    kernel(&mut page, node)?;
    control(&mut page, node)?;
    cache(&mut page, node)?;
    certificates(&mut page, node)?;
    page.0.push_str(END);
    Ok(page.0)
}

/// Writes families by hand: these values live elsewhere and are only read here.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) -> fmt::Result {
        writeln!(self.0, "# HELP {name} {help}.\n# TYPE {name} {kind}")
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) -> fmt::Result {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' })?;
        }
        writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" })
    }
}

fn agent(page: &mut Page, node: &Node) -> fmt::Result {
    let is_ready = u8::from(node.readiness() == Readiness::Ready);
    page.family("mesh_agent_ready", "gauge", "Whether the agent is ready")?;
    page.value("mesh_agent_ready", &[("node", &node.config.node), ("version", env!("CARGO_PKG_VERSION"))], is_ready)?;
    page.family("mesh_agent_uptime_seconds", "gauge", "Time since the agent started")?;
    page.value("mesh_agent_uptime_seconds", &[], node.started.elapsed().as_secs_f64())?;
    let (pods, view) = (node.pods.load(), node.view.load_full().unwrap_or_default());
    let ready = pods.by_uid.values().filter(|pod| pod.workload(&view).is_some()).count();
    page.family(
        "mesh_enrolled_pods",
        "gauge",
        "Enrolled pods by whether the View knows them; failed: refused since a restart",
    )?;
    page.value("mesh_enrolled_pods", &[("state", "ready")], ready)?;
    page.value("mesh_enrolled_pods", &[("state", "pending")], pods.by_uid.len() - ready)?;
    page.value("mesh_enrolled_pods", &[("state", "failed")], pods.failed)?;
    let older: usize = node.older.load().values().map(std::collections::HashSet::len).sum();
    page.family("mesh_connections_before_enrolment", "gauge", "Open connections older than their pod's enrolment")?;
    page.value("mesh_connections_before_enrolment", &[], older)?;
    page.family("mesh_worker_alive", "gauge", "Whether a worker thread runs")?;
    for (number, worker) in node.workers.iter().enumerate() {
        page.value("mesh_worker_alive", &[("worker", &number.to_string())], u8::from(worker.is_alive()))?;
    }
    page.family("mesh_tasks", "gauge", "Tasks that run")?;
    page.value("mesh_tasks", &[], drain::tasks())?;
    page.family("mesh_task_panics", "counter", "Tasks that ended by a panic, each alone")?;
    page.value("mesh_task_panics_total", &[], drain::panics())?;
    let ages = node.kernel.heartbeat_ages().unwrap_or_default();
    page.family("mesh_worker_heartbeat_age_seconds", "gauge", "Time since a worker thread beat; absent before it did")?;
    for (number, age) in ages.iter().enumerate() {
        if let Some(age) = age {
            let labels = [("worker", &*number.to_string())];
            page.value("mesh_worker_heartbeat_age_seconds", &labels, age.as_secs_f64())?;
        }
    }
    Ok(())
}

fn listeners(page: &mut Page, node: &Node) -> fmt::Result {
    page.family("mesh_listener_refused", "counter", "What came to a listener and was refused or cut, by reason")?;
    for refusals in node.telemetry.listeners.all() {
        for (reason, count) in refusals.counts() {
            let labels = [("listener", refusals.listener), ("reason", reason.label())];
            page.value("mesh_listener_refused_total", &labels, count)?;
        }
    }
    Ok(())
}

fn kernel(page: &mut Page, node: &Node) -> fmt::Result {
    page.family("mesh_steering", "counter", "What the hooks did with connections, by reason")?;
    for (counter, count) in node.kernel.counters().unwrap_or_default() {
        page.value("mesh_steering_total", &[("reason", counter.name())], count)?;
    }
    let maps = node.kernel.map_fill().unwrap_or_default();
    page.family("mesh_map_entries", "gauge", "Entries of the kernel's maps")?;
    for map in &maps {
        page.value("mesh_map_entries", &[("map", map.name)], map.entries)?;
    }
    page.family("mesh_map_capacity", "gauge", "Entries that the kernel's maps can hold")?;
    for map in &maps {
        page.value("mesh_map_capacity", &[("map", map.name)], map.capacity)?;
    }
    page.family("mesh_map_full", "counter", "Entries that the kernel's maps had no room for")?;
    for map in &maps {
        page.value("mesh_map_full_total", &[("map", map.name)], map.refused)?;
    }
    let programs = node.kernel.programs().unwrap_or_default();
    page.family(
        "mesh_program_runs",
        "counter",
        "Runs of the kernel's programs, while kernel.bpf_stats_enabled is set",
    )?;
    for program in &programs {
        page.value("mesh_program_runs_total", &[("program", program.name)], program.runs)?;
    }
    page.family(
        "mesh_program_run_seconds",
        "counter",
        "Time in the kernel's programs, while kernel.bpf_stats_enabled is set",
    )?;
    for program in &programs {
        let seconds = program.run_time_ns as f64 / 1e9;
        page.value("mesh_program_run_seconds_total", &[("program", program.name)], seconds)?;
    }
    Ok(())
}

fn control(page: &mut Page, node: &Node) -> fmt::Result {
    let control = node.control.load();
    page.family("mesh_control_connected", "gauge", "Whether the control daemon answers")?;
    page.value("mesh_control_connected", &[], u8::from(control.is_connected))?;
    page.family("mesh_xds_connection_terminations", "counter", "Control streams that ended")?;
    page.value("mesh_xds_connection_terminations_total", &[], control.terminations)?;
    page.family("mesh_xds_resources", "gauge", "Resources held, by type")?;
    for status in &control.types {
        page.value("mesh_xds_resources", &[("type", short(status.type_url))], status.resources)?;
    }
    page.family("mesh_xds_messages", "counter", "Answers of the control daemon, by type")?;
    for status in &control.types {
        page.value("mesh_xds_messages_total", &[("type", short(status.type_url))], status.responses)?;
    }
    page.family("mesh_xds_refusals", "counter", "Answers that were refused wholly or in part, by type")?;
    for status in &control.types {
        page.value("mesh_xds_refusals_total", &[("type", short(status.type_url))], status.nacks)?;
    }
    if let Some(published) = control.view_published {
        page.family("mesh_view_age_seconds", "gauge", "Time since the last View was published")?;
        page.value("mesh_view_age_seconds", &[], published.elapsed().as_secs_f64())?;
    }
    Ok(())
}

/// What outlives a restart.
fn cache(page: &mut Page, node: &Node) -> fmt::Result {
    let (control, cache) = (node.control.load(), node.cache.load());
    page.family(
        "mesh_view_from_cache",
        "gauge",
        "Whether the View in force is from disk and not confirmed by control",
    )?;
    page.value("mesh_view_from_cache", &[], u8::from(control.view_cached.is_some()))?;
    page.family("mesh_view_cache_writes", "counter", "Times that the View was written to disk")?;
    page.value("mesh_view_cache_writes_total", &[], cache.saves)?;
    page.family("mesh_view_cache_failures", "counter", "Times that the View on disk was refused or not written")?;
    page.value("mesh_view_cache_failures_total", &[], cache.failures)?;
    let certificates = node.certificates.load();
    let held = || certificates.iter().filter(|status| status.certificate.is_some());
    page.family("mesh_certificates_from_disk", "gauge", "Certificates in use that an earlier run was issued")?;
    page.value("mesh_certificates_from_disk", &[], held().filter(|status| status.is_from_vault).count())?;
    page.family("mesh_certificates_not_kept", "gauge", "Certificates in use that a restart would lose")?;
    page.value("mesh_certificates_not_kept", &[], held().filter(|status| !status.is_kept).count())
}

fn certificates(page: &mut Page, node: &Node) -> fmt::Result {
    let certificates = node.certificates.load();
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    page.family("mesh_certificate_expiry_timestamp_seconds", "gauge", "When a workload's certificate ends")?;
    for status in certificates.iter() {
        if let Some(certificate) = &status.certificate {
            let identity = status.identity.to_string();
            let labels = [("identity", identity.as_str())];
            page.value("mesh_certificate_expiry_timestamp_seconds", &labels, seconds(certificate.not_after))?;
        }
    }
    page.family("mesh_certificates_failing", "gauge", "Identities whose certificate is due and was not had")?;
    page.value(
        "mesh_certificates_failing",
        &[],
        certificates.iter().filter(|status| !status.error.is_empty()).count(),
    )?;
    let is_over = |status: &&CertificateStatus| {
        status.certificate.as_ref().is_some_and(|held| held.not_after <= SystemTime::now())
    };
    page.family(
        "mesh_certificates_expired",
        "gauge",
        "Identities whose certificate has ended: they make no connection",
    )?;
    page.value("mesh_certificates_expired", &[], certificates.iter().filter(is_over).count())
}

fn short(type_url: &str) -> &str {
    type_url.rsplit('.').next().unwrap_or(type_url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_families_described() {
        let mut page = Page(String::new());
        page.family("mesh_x", "gauge", "Help").unwrap();
        page.value("mesh_x", &[("a", "q\"b\\c\n"), ("b", "")], 1.5).unwrap();
        page.value("mesh_x", &[], 2).unwrap();
        assert_eq!(
            page.0,
            "# HELP mesh_x Help.\n# TYPE mesh_x gauge\nmesh_x{a=\"q\\\"b\\\\c\\n\",b=\"\"} 1.5\nmesh_x 2\n"
        );
    }
}
