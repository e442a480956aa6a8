//! Holds docs/meshctl.md to what `meshctl` prints: every `console` block there is a command of this file's agent with
//! fixed answers, and its output. `MESHCTL_DOCS=write cargo test -p mesh-ctl documentation` writes them anew.

use std::path::Path;

use crate::{
    agent::{Agent, Printed, run_at},
    control,
};

const BEGIN: &str = "```console\n$ meshctl ";
const END: &str = "```\n";

#[test]
fn the_examples_are_what_meshctl_prints() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/meshctl.md");
    let written = std::fs::read_to_string(&path).expect("docs/meshctl.md is part of the repository");
    let agent = Agent::start();

    let mut expected = String::new();
    let mut rest = written.as_str();
    let mut examples = 0;
    while let Some((before, block)) = rest.split_once(BEGIN) {
        let (words, output) = block.split_once('\n').expect("a command ends with its line");
        let (_, after) = output.split_once(END).expect("a block is closed");
        expected += &format!("{before}{BEGIN}{words}\n{}{END}", example(&agent, words));
        rest = after;
        examples += 1;
    }
    expected += rest;

    if std::env::var_os("MESHCTL_DOCS").is_some_and(|value| value == "write") {
        std::fs::write(&path, &expected).expect("a writable work tree");
    } else {
        let differs = written.lines().zip(expected.lines()).find(|(is, should)| is != should);
        assert_eq!(written, expected, "first difference: {differs:?}; write it anew with MESHCTL_DOCS=write");
    }
    assert!(examples > 0, "no example was found");
}

#[test]
fn every_sub_command_has_its_help_and_an_example() {
    let documented = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/meshctl.md"))
        .expect("docs/meshctl.md is part of the repository");
    let agent = Agent::start();
    let help = agent.run(&["--help"]).stdout;
    let (_, commands) = help.split_once("Commands:\n").expect("there are sub-commands");
    let names: Vec<_> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();

    assert!(names.contains(&"sockets"), "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        assert!(documented.contains(&format!("{BEGIN}{name} --help\n")), "{name} has no help");
        let is_example = |line: &str| {
            line.strip_prefix("$ meshctl ")
                .is_some_and(|words| words.split_whitespace().next() == Some(name) && !words.ends_with("--help"))
        };
        assert!(documented.lines().any(is_example), "{name} has no example");
    }
}

/// What a shell shows for one command.
fn example(agent: &Agent, line: &str) -> String {
    let control = control::serve("200 OK", control::PAGE).to_string();
    // An example about a control daemon names it as it would be forwarded.
    let named = |word| if word == "127.0.0.1:15013" { control.as_str() } else { word };
    let words: Vec<_> = line.split_whitespace().map(named).collect();
    let Printed { code, stdout, stderr } = match words.as_slice() {
        // An example about the socket names one that is not there.
        ["--socket", socket, words @ ..] => run_at(Path::new(socket), words),
        words => run_at(&agent.socket(), words),
    };
    let exit = if code == 0 { String::new() } else { format!("[exit code {code}]\n") };
    format!("{stdout}{stderr}{exit}")
}
