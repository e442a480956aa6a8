//! The faults in which a part of the mesh believes what is not so: a clock that is two hours off, a control daemon that speaks
//! nonsense. Each leaves the mesh as it found it; an error is a promise that was not kept.

use std::{thread, time::Duration};

use mesh_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, MESH_CONFIG_TYPE};

use crate::{
    LIMIT, eventually,
    imposter::{Babbler, Imposter, answer},
    torture::stage::Stage,
};

/// An agent under a clock of its own takes over; then that is put off while it runs. `meshctl check` has to come to `expected`
/// about it.
pub fn put_agents_clock_off(stage: &Stage, offset: &str, expected: &str, hold: Duration) -> Result<(), String> {
    let node = stage.mesh.node("node-b");
    node.sets_clock("+0");
    node.upgrade_agent(&[]);
    node.sets_clock(offset);
    thread::sleep(hold);
    let rows = node.admin().check().map_err(|status| status.to_string())?;
    let line = rows.iter().find(|row| row.name == "clock").ok_or("check has no line on the clock")?;
    node.sets_clock("+0");
    node.forgets_clock();
    node.upgrade_agent(&[]);
    if line.result == expected { Ok(()) } else { Err(format!("a clock {offset} off: check says {line:?}")) }
}

/// What it has served with is not valid yet, and so is what it issues; agents name the clock and go on with what they have.
pub fn put_controls_clock_ahead(stage: &Stage, hold: Duration) -> Result<(), String> {
    let control = stage.mesh.control();
    control.kill();
    control.sets_clock("+2h");
    control.start();
    thread::sleep(hold);
    control.kill();
    control.forgets_clock();
    control.start();
    Ok(())
}

/// Something else listens in its place, and answers with bytes that are nothing.
pub fn babble_for_control(stage: &Stage, hold: Duration) -> Result<(), String> {
    stage.mesh.control().kill();
    let babbler = Babbler::of(stage.mesh.control());
    thread::sleep(hold);
    drop(babbler);
    stage.mesh.control().start();
    Ok(())
}

/// With control's own certificate, resources come that cannot be: each is refused, with a reason, and what was known stays.
pub fn garble_resources(stage: &Stage, hold: Duration) -> Result<(), String> {
    let control = stage.mesh.control();
    control.kill();
    let imposter = Imposter::of(control);
    let agents = stage.mesh.nodes().len();
    eventually("the agents listen", LIMIT, || match imposter.listeners() {
        count if count >= agents => Ok(()),
        count => Err(format!("{count} listen")),
    });
    let closed = format!("default/{}", stage.closed[0].name());
    let nonsense = [
        answer(ADDRESS_TYPE, "nobody", ADDRESS_TYPE, b"\xff\xfe\xfdgarbage"),
        answer(AUTHORIZATION_TYPE, &closed, AUTHORIZATION_TYPE, b"\x08\x01"),
        answer(MESH_CONFIG_TYPE, "mesh", MESH_CONFIG_TYPE, b"\x0a\xff"),
    ];
    for (said, count) in nonsense.iter().zip(1..) {
        imposter.says(said);
        eventually("what makes no sense is refused", LIMIT, || match imposter.refusals().len() {
            refusals if refusals >= count * agents => Ok(()),
            refusals => Err(format!("{refusals} refusals")),
        });
        thread::sleep(hold / 3);
    }
    drop(imposter);
    control.start();
    Ok(())
}
