//! One question to the agent per sub-command, and its answer as a page. Decides nothing that the agent has decided.

use std::time::Duration;

use mesh_api::proto::admin::{
    CertificatesRequest, CheckRequest, EnrolRequest, ExplainRequest, ListRequest, LogRequest, PoliciesRequest,
    ServicesRequest, SocketRow, SocketsRequest, StatusRequest, WithdrawRequest, WorkloadsRequest,
    enrol_request::NetworkNamespace,
};
use serde::Serialize;

use crate::{
    arguments::{Arguments, Command, Destination, Enrol, Format, Sockets},
    connection::Agent,
    control,
    failure::Failure,
    listing,
    print::{Answer, Nested, Page, Screen, Style, upright},
    table::{Record, printable, records},
};

/// Asks what the command line asks, once or until interrupted.
///
/// # Errors
/// No answer, a refusal, or no way to print it.
pub async fn run(arguments: Arguments) -> Result<Answer, Failure> {
    let Arguments { socket, output, timeout, command } = arguments;
    let timeout = Duration::from_secs(timeout);
    let interval = command.interval();
    let style = Style { format: output, is_watch: interval.is_some() };
    let mut screen = Screen::new();
    let controls = command.controls();
    let agent = if controls.is_empty() { Some(Agent::connect(&socket, timeout).await?) } else { None };
    loop {
        let page = match &agent {
            Some(agent) => ask(agent, &command, style).await?,
            None => agents(controls, timeout, style).await?,
        };
        screen.show(&page, style)?;
        match interval {
            None => return Ok(page.answer),
            Some(interval) => tokio::time::sleep(interval).await,
        }
    }
}

/// Whether every agent of these control daemons is in sync.
async fn agents(controls: &[String], timeout: Duration, style: Style) -> Result<Page, Failure> {
    let rows = control::agents(controls, timeout).await?;
    let answer = if rows.iter().all(control::Agent::is_in_sync) { Answer::Yes } else { Answer::No };
    Ok(Page { text: style.listing("agents", listing::AGENTS, &rows), answer })
}

async fn ask(agent: &Agent, command: &Command, style: Style) -> Result<Page, Failure> {
    let text = match command {
        Command::Enrol(pod) => enrol(agent, pod, style).await?,
        Command::Withdraw { uid } => withdraw(agent, uid, style).await?,
        Command::Sockets(which) => sockets(agent, which, style).await?,
        Command::Log { filter } => log(agent, filter.as_deref(), style).await?,
        Command::Explain { source, destination } => return explain(agent, source, destination, style).await,
        Command::Check => return check(agent, style).await,
        Command::Status(_) => status(agent, style).await?,
        Command::Pods(_) => {
            let mut rows = agent.answer(agent.enrolment().list(ListRequest {})).await?.pods;
            rows.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
            style.listing("pods", listing::PODS, &rows)
        }
        Command::Workloads(_) => {
            let mut rows = agent.answer(agent.inspect().workloads(WorkloadsRequest {})).await?.workloads;
            rows.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
            style.listing("workloads", listing::WORKLOADS, &rows)
        }
        Command::Services(_) => {
            let mut rows = agent.answer(agent.inspect().services(ServicesRequest {})).await?.services;
            rows.sort_by(|a, b| (&a.namespace, &a.hostname).cmp(&(&b.namespace, &b.hostname)));
            style.listing("services", listing::SERVICES, &rows)
        }
        Command::Policies(_) => {
            let mut rows = agent.answer(agent.inspect().policies(PoliciesRequest {})).await?.policies;
            rows.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
            style.listing("policies", listing::POLICIES, &rows)
        }
        Command::Certificates(_) => {
            let mut rows = agent.answer(agent.inspect().certificates(CertificatesRequest {})).await?.certificates;
            listing::sort_certificates(&mut rows);
            style.listing("certificates", listing::CERTIFICATES, &rows)
        }
    };
    Ok(Page::yes(text))
}

async fn enrol(agent: &Agent, pod: &Enrol, style: Style) -> Result<String, Failure> {
    let network_namespace = match (&pod.network_namespace.path, pod.network_namespace.pid) {
        (Some(path), _) => Some(NetworkNamespace::NetworkNamespacePath(path.clone())),
        (None, pid) => pid.map(NetworkNamespace::Pid),
    };
    let request = EnrolRequest {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        service_account: pod.service_account.clone(),
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        cgroup_path: pod.cgroup_path.clone(),
        probe_ports: pod.probe_ports.iter().map(|port| u32::from(*port)).collect(),
        fail_open: pod.fail_open,
        network_namespace,
    };
    agent.answer(agent.enrolment().enrol(request)).await?;
    let sentence = format!("{}/{} is enrolled: its new connections are steered", pod.namespace, pod.name);
    Ok(style.sentence("enrolled", &pod.uid, &sentence))
}

async fn withdraw(agent: &Agent, uid: &str, style: Style) -> Result<String, Failure> {
    agent.answer(agent.enrolment().withdraw(WithdrawRequest { uid: uid.into() })).await?;
    Ok(style.sentence("withdrawn", uid, &format!("{uid} is withdrawn: nothing of it is steered any more")))
}

async fn sockets(agent: &Agent, which: &Sockets, style: Style) -> Result<String, Failure> {
    let mut rows = agent.answer(agent.inspect().sockets(SocketsRequest {})).await?.sockets;
    rows.retain(|row| is_asked_for(row, which));
    listing::sort_sockets(&mut rows);
    let columns = match (style.format, which.why_plaintext, which.why_denied) {
        (Format::Table, true, _) => listing::PLAINTEXT,
        (Format::Table, _, true) => listing::DENIED,
        _ => listing::SOCKETS,
    };
    Ok(style.listing("sockets", columns, &rows))
}

fn is_asked_for(row: &SocketRow, which: &Sockets) -> bool {
    which.pod.as_ref().is_none_or(|pod| *pod == row.pod)
        && (!which.why_plaintext || listing::is_in_the_clear(row))
        && (!which.why_denied || listing::is_denied(row))
}

async fn log(agent: &Agent, filter: Option<&str>, style: Style) -> Result<String, Failure> {
    let request = LogRequest { filter: filter.unwrap_or_default().into() };
    let now = agent.answer(agent.inspect().log(request)).await?.filter;
    Ok(style.sentence("filter", &now, &now))
}

async fn explain(agent: &Agent, source: &str, destination: &Destination, style: Style) -> Result<Page, Failure> {
    let request =
        ExplainRequest { source: source.into(), destination: destination.host.clone(), port: destination.port.into() };
    let found = agent.answer(agent.inspect().explain(request)).await?;
    let answer = if found.verdict == "allowed" { Answer::Yes } else { Answer::No };
    let text = match style.format {
        Format::Json => {
            let steps = records(listing::STEPS, &found.steps);
            style.json(&Nested::new(listing::VERDICT, &found, "steps", steps))
        }
        Format::Table | Format::Wide => {
            format!("{}\n{}", style.table(listing::STEPS, &found.steps), upright(listing::VERDICT, &found))
        }
    };
    Ok(Page { text, answer })
}

/// What `check -o json` prints.
#[derive(Serialize)]
struct Checked<'a> {
    passed: bool,
    checks: Vec<Record<'a, mesh_api::proto::admin::CheckRow>>,
}

async fn check(agent: &Agent, style: Style) -> Result<Page, Failure> {
    let rows = agent.answer(agent.inspect().check(CheckRequest {})).await?.checks;
    let failed = listing::failed_checks(&rows);
    // An agent that looked at nothing has not passed.
    let passed = failed == 0 && !rows.is_empty();
    let answer = if passed { Answer::Yes } else { Answer::No };
    if style.format == Format::Json {
        let checks = records(listing::CHECKS, &rows);
        return Ok(Page { text: style.json(&Checked { passed, checks }), answer });
    }
    let mut text = style.table(listing::CHECKS, &rows);
    text.push('\n');
    let remedies = rows.iter().filter(|row| !style.is_wide() && row.result != "ok" && !row.remedy.is_empty());
    for row in remedies {
        text += &format!("{}: {}\n", printable(&row.name), printable(&row.remedy));
    }
    let warnings = rows.iter().filter(|row| row.result == "warning").count();
    text += &format!("{} ok, {warnings} with a warning, {failed} failed\n", rows.len() - failed - warnings);
    Ok(Page { text, answer })
}

async fn status(agent: &Agent, style: Style) -> Result<String, Failure> {
    let found = agent.answer(agent.inspect().status(StatusRequest {})).await?;
    Ok(match style.format {
        Format::Json => {
            let types = records(listing::RESOURCE_TYPES, &found.resource_types);
            style.json(&Nested::new(listing::STATUS, &found, "resource_types", types))
        }
        Format::Table | Format::Wide => {
            let types = style.table(listing::RESOURCE_TYPES, &found.resource_types);
            format!("{}\n{types}", upright(listing::STATUS, &found))
        }
    })
}
