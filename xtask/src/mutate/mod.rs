//! `cargo xtask mutate [NAME]`: deliberately broken variants of the product, each of which a story has to notice. A patch of
//! `tests/mutations` is applied to a copy of the sources in TARGET/mutate, that is built, and the story that the patch names has
//! to fail by an assertion of its own. Minutes for each, hence no part of `test`; the lint checks that the patches apply.

mod patch;
mod tree;

pub use patch::check;

use std::{collections::BTreeSet, fs, time::Instant};

use anyhow::{Result, bail};

use self::{
    patch::{Mutant, Story},
    tree::{Told, Tree},
};
use crate::{setup, shell};

/// How much of a story's output is shown when it is not what was expected.
const SHOWN_LINES: usize = 30;

/// Runs all variants, or the one that is named, and sums up.
///
/// # Errors
/// One is not noticed, does not build or does not apply; or a story fails without any of them. All others run before that is said.
pub fn run(only: Option<&str>) -> Result<()> {
    shell::require_root("mutate")?;
    let mutants = patch::read(only)?;
    setup::everything()?;
    let tree = Tree::new()?;
    tree.restore()?;
    tree.build_programs()?;
    let files: BTreeSet<&str> = mutants.iter().map(|mutant| mutant.story.file.as_str()).collect();
    tree.build_stories(files.into_iter())?;
    passes_unbroken(&tree, &mutants)?;
    let mut rows = Vec::new();
    for mutant in &mutants {
        patch::announce(mutant);
        let begun = Instant::now();
        let end = attempt(&tree, mutant).unwrap_or_else(|error| End::Unusable(format!("{error:#}")));
        rows.push((mutant, end, begun.elapsed().as_secs()));
    }
    tree.restore()?;
    println!("{:<28}{:<10}{:>8}  story", "variant", "end", "seconds");
    for (mutant, end, seconds) in &rows {
        println!("{:<28}{:<10}{seconds:>8}  {}", mutant.name, end.word(), mutant.story);
    }
    let missed: Vec<String> = rows.iter().filter_map(|(mutant, end, _)| end.complaint(mutant)).collect();
    if missed.is_empty() { Ok(()) } else { bail!("not noticed:\n  {}", missed.join("\n  ")) }
}

/// A story that fails anyhow notices nothing.
fn passes_unbroken(tree: &Tree, mutants: &[Mutant]) -> Result<()> {
    let stories: BTreeSet<&Story> = mutants.iter().map(|mutant| &mutant.story).collect();
    for story in stories {
        let (told, output) = tree.tell(story)?;
        if told != Told::Passed {
            show(&output);
            bail!("{story} does not pass with the sources as they are, so that it can tell nothing of variants");
        }
    }
    Ok(())
}

/// What became of a variant.
enum End {
    Noticed,
    Survived,
    Unusable(String),
}

impl End {
    fn word(&self) -> &'static str {
        match self {
            Self::Noticed => "noticed",
            Self::Survived => "SURVIVED",
            Self::Unusable(_) => "UNUSABLE",
        }
    }

    fn complaint(&self, mutant: &Mutant) -> Option<String> {
        match self {
            Self::Noticed => None,
            Self::Survived => Some(format!("{}: {} passes with it; mend the story", mutant.name, mutant.story)),
            Self::Unusable(why) => Some(format!("{}: {why}", mutant.name)),
        }
    }
}

fn attempt(tree: &Tree, mutant: &Mutant) -> Result<End> {
    tree.restore()?;
    mutant.apply(tree.sources(), &[])?;
    tree.build_programs()?;
    let (told, output) = tree.tell(&mutant.story)?;
    let log = tree.sources().with_file_name(format!("{}.log", mutant.name));
    fs::write(&log, &output)?;
    match told {
        Told::Passed => Ok(End::Survived),
        Told::Failed => {
            let mut lines = output.lines().skip_while(|line| !line.contains("panicked at"));
            lines.by_ref().take(2).for_each(|line| shell::say(&format!("mutate: {line}")));
            Ok(End::Noticed)
        }
        Told::Broken => {
            show(&output);
            bail!("the story did not come to an assertion: {}", log.display())
        }
    }
}

fn show(output: &str) {
    let lines: Vec<&str> = output.lines().collect();
    eprintln!("{}", lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n"));
}
