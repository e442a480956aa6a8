//! One process of the mesh believes that it is two hours earlier or later than it is. What must fail names the clock, nothing
//! goes in the clear, and all is well by itself once the clock is right.

use mesh_tests::{App, LIMIT, Mesh, eventually, node::Node};

/// A workload on each node, the far one with a server.
fn pods(mesh: &Mesh) -> (App, App) {
    let web = mesh.app("web").on("node-a").echoing_on(80);
    let far = mesh.app("far").on("node-b").echoing_on(80);
    both_ways(&web, &far);
    (web, far)
}

#[track_caller]
fn both_ways(web: &App, far: &App) {
    web.dial(far).is_answered();
    far.dial(web).is_answered();
}

/// Waits until both reach each other again.
#[track_caller]
fn recovers(web: &App, far: &App) {
    eventually("they reach each other again", 2 * LIMIT, || {
        let is_so = web.dial(far).was_answered() && far.dial(web).was_answered();
        if is_so { Ok(()) } else { Err("not yet".to_owned()) }
    });
}

/// Waits until a line of `meshctl check` fails and names the clock.
#[track_caller]
fn check_names_the_clock(node: &Node, line: &str) {
    eventually(&format!("check's line {line} names the clock"), LIMIT, || {
        let rows = node.admin().check().map_err(|status| status.to_string())?;
        let row = rows.iter().find(|row| row.name == line).ok_or("no such line")?;
        let is_named = row.result == "failed" && (row.text.contains("clock") || row.remedy.contains("clock"));
        if is_named { Ok(()) } else { Err(format!("{row:?}")) }
    });
}

#[test]
fn an_agent_whose_clock_is_ahead_goes_on() {
    let mesh = Mesh::new();
    let (web, far) = pods(&mesh);
    let node = mesh.node("node-a");
    node.kill_agent();
    node.sets_clock("+2h");
    node.start_agent();
    node.is_ready();
    both_ways(&web, &far);
    // Also with a certificate that it is given now.
    let late = mesh.app("late").on("node-a");
    late.dial(&far).is_answered();
    let rows = node.admin().certificates().expect("the agent lists certificates");
    assert!(rows.iter().all(|row| row.state == "valid"), "{rows:?}");
    node.sets_clock("+0");
    both_ways(&web, &far);
}

#[test]
fn certificates_of_a_control_daemon_that_is_ahead_are_refused_until_they_are_valid() {
    let mesh = Mesh::new();
    let (web, far) = pods(&mesh);
    let (control, node) = (mesh.control(), mesh.node("node-a"));
    control.kill();
    control.sets_clock("+0");
    control.start();
    eventually("the agent is connected", LIMIT, || {
        let status = node.admin().status().map_err(|status| status.to_string())?;
        if status.control == "connected" { Ok(()) } else { Err(status.last_error) }
    });

    // It runs, and its clock is put off.
    control.sets_clock("+2h");
    let late = mesh.app("late").on("node-a");
    mesh.settle();
    eventually("its certificate is refused for the clock", LIMIT, || {
        let rows = node.admin().certificates().map_err(|status| status.to_string())?;
        let row = rows.iter().find(|row| row.identity.ends_with("sa/late")).ok_or("it is not asked for")?;
        let is_named = row.state == "missing" && row.error.contains("clock");
        if is_named { Ok(()) } else { Err(format!("{row:?}")) }
    });
    late.dial(&far).is_refused();
    both_ways(&web, &far);

    // It starts with that clock: not even its own certificate is valid yet.
    control.kill();
    control.start();
    check_names_the_clock(node, "control");
    let status = String::from_utf8(node.meshctl(&["status"]).stdout).expect("UTF-8");
    assert!(status.contains("clock"), "{status}");
    both_ways(&web, &far);

    control.sets_clock("+0");
    eventually("the late one gets its certificate", 2 * LIMIT, || match late.dial(&far).was_answered() {
        true => Ok(()),
        false => Err(node.admin().status().map_or_else(|status| status.to_string(), |status| status.last_error)),
    });
    both_ways(&web, &far);
}

#[test]
fn an_agent_whose_clock_is_behind_refuses_every_certificate_and_says_why() {
    let mesh = Mesh::new();
    let (web, far) = pods(&mesh);
    let node = mesh.node("node-b");
    node.kill_agent();
    node.sets_clock("+0");
    node.start_agent();
    node.is_ready();
    both_ways(&web, &far);

    // It runs on with what is established, and says that its certificates are from the future.
    node.sets_clock("-2h");
    check_names_the_clock(node, "clock");
    let rows = node.admin().certificates().expect("the agent lists certificates");
    assert!(rows.iter().any(|row| row.state == "not yet valid"), "{rows:?}");

    // It starts with that clock: nobody's certificate is valid yet, control's neither.
    node.kill_agent();
    node.start_agent();
    check_names_the_clock(node, "control");
    web.dial(&far).is_refused();
    far.dial(&web).is_refused();

    node.sets_clock("+0");
    recovers(&web, &far);
}
