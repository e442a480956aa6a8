//! `cargo xtask render`: writes the files of deploy/ that are made from others. Tests compare them with what would be written.

use std::fs;

use anyhow::{Context, Result};

use crate::{chart, dist::dockerfile, shell, workspace};

/// Writes them all.
///
/// # Errors
/// There is no helm, or it refuses the chart.
pub fn run() -> Result<()> {
    write(dockerfile::PLACE, &dockerfile::text())?;
    chart::files()?.iter().try_for_each(|(place, text)| write(place, text))
}

fn write(place: &str, text: &str) -> Result<()> {
    fs::write(workspace::root().join(place), text).with_context(|| place.to_owned())?;
    shell::say(&format!("render: {place}"));
    Ok(())
}
