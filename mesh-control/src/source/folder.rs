//! The manifests of a folder, file by file. A file counts as a whole: with any mistake in it, all of its objects stay
//! as they last were without one, also when the daemon was started since. A file that never was good gives its good
//! policies, and for each policy in it that cannot be read one that denies everything in its scope; its other objects
//! wait. Reads files, watches nothing.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;

use super::{
    document,
    kept::Kept,
    problem::{Position, Problem},
    refused,
};
use crate::objects::{self, Object, Objects, Parsed, metadata::Name};

/// Manifests larger than this are refused rather than read into memory.
const FILE_BYTES: u64 = 64 << 20;

/// The folder as it was last read.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    kept: Kept,
}

#[derive(Debug, Default)]
struct File {
    /// What `objects` and `problems` were read from; `None` has to be read again.
    text: Option<String>,
    objects: Vec<Object>,
    was_good: bool,
    /// The form in force is the one that is kept on disk.
    is_kept: bool,
    problems: Vec<Problem>,
    ignored: Vec<Problem>,
}

/// What is known of one file, for its author.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Path below the folder.
    pub file: String,
    /// Which form of the file is in force.
    pub state: FileState,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// Documents that are not read, and why.
    pub ignored: Vec<Problem>,
}

/// Which form of a file is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// The one on disk.
    InForce,
    /// An earlier one; the one on disk has mistakes.
    LastGood,
    /// None: it never was good. Policies in it that cannot be read deny everything in their scope.
    NeverGood,
}

/// The folder's objects and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// What is in force.
    pub objects: Objects,
    /// One report for each file.
    pub reports: Vec<FileReport>,
}

impl Desired {
    /// Number of problems in all files.
    pub fn problem_count(&self) -> usize {
        self.reports.iter().map(|report| report.problems.len()).sum()
    }
}

impl Folder {
    /// A folder that has not been read yet. Last good forms are kept below `state`, which may be the folder
    /// itself or below it.
    pub fn new(root: impl Into<PathBuf>, state: &Path) -> Folder {
        Folder { root: root.into(), files: BTreeMap::new(), kept: Kept::new(state) }
    }

    /// Where the manifests are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Reads what changed since the last time. O(bytes of the folder); only changed files are parsed.
    ///
    /// # Errors
    /// The folder itself cannot be listed; nothing changes then.
    pub fn read(&mut self) -> io::Result<Desired> {
        let mut paths = BTreeSet::new();
        list(&self.root, &mut paths)?;
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            let text = read_text(&path);
            let file = match self.files.entry(path) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => {
                    let below = new.key().strip_prefix(&self.root).unwrap_or(new.key());
                    let kept = self.kept.text(below);
                    new.insert(kept.map(File::from_kept).unwrap_or_default())
                }
            };
            match text {
                Ok(text) => file.update(text),
                Err(error) => {
                    file.text = None;
                    file.problems = vec![whole_file(format!("cannot be read: {error}"))];
                }
            }
        }
        Ok(self.merge())
    }

    /// Keeps the good forms on disk, for the next daemon, and forgets those of files that are gone. Writes what is new; what
    /// fails is logged and tried again with the next call.
    pub fn keep(&mut self) {
        for (path, file) in self.files.iter_mut().filter(|(_, file)| file.problems.is_empty() && !file.is_kept) {
            let (below, text) = (path.strip_prefix(&self.root).unwrap_or(path), file.text.as_deref());
            match text.map_or(Ok(()), |text| self.kept.put(below, text)) {
                Ok(()) => file.is_kept = true,
                Err(error) => {
                    tracing::error!(file = %below.display(), %error, "the good form is not kept for a restart");
                }
            }
        }
        let below = |path: &PathBuf| path.strip_prefix(&self.root).unwrap_or(path).to_owned();
        if let Err(error) = self.kept.retain(&self.files.keys().map(below).collect()) {
            tracing::error!(%error, "a last good form of a file that is gone is still there");
        }
    }

    /// One state out of all files. An object that two files define is the first file's, by path.
    fn merge(&self) -> Desired {
        let mut desired = Desired::default();
        let mut owners: BTreeMap<(&'static str, Name), (&Path, Position)> = BTreeMap::new();
        for (path, file) in &self.files {
            let mut problems = file.problems.clone();
            for object in &file.objects {
                // One MeshConfig holds for the whole mesh, whatever its name.
                let name = if object.kind() == "MeshConfig" { Name::new("", "") } else { object.name() };
                match owners.entry((object.kind(), name)) {
                    Entry::Vacant(free) => {
                        free.insert((path, object.at()));
                        desired.objects.insert(object.clone());
                    }
                    Entry::Occupied(taken) => {
                        let (file, at) = taken.get();
                        let reason = format!(
                            "{} {} is already defined in {}:{}",
                            object.kind(),
                            object.name(),
                            self.relative(file),
                            at.line
                        );
                        problems.push(Problem { at: object.at(), field: "metadata.name".into(), reason });
                    }
                }
            }
            let state = match (file.problems.is_empty(), file.was_good) {
                (true, _) => FileState::InForce,
                (false, true) => FileState::LastGood,
                (false, false) => FileState::NeverGood,
            };
            let report = FileReport { file: self.relative(path), state, problems, ignored: file.ignored.clone() };
            desired.reports.push(report);
        }
        desired
    }

    fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }
}

impl File {
    /// A file as the daemon before this one had it in force.
    fn from_kept(text: String) -> File {
        let mut file = File::default();
        file.update(text);
        // Written by a version that took what this one refuses: worth no more than a file that never was good.
        if file.was_good { File { is_kept: true, ..file } } else { File::default() }
    }

    fn update(&mut self, text: String) {
        if self.text.as_ref() == Some(&text) {
            return;
        }
        if !self.objects.is_empty() && document::is_blank(&text) {
            // An editor that truncates before it writes must not withdraw policies; to withdraw, remove the file.
            self.problems = vec![whole_file("is empty; remove the file to withdraw its objects".to_owned())];
            self.text = Some(text);
            return;
        }
        let read = Read::from_text(&text);
        (self.problems, self.ignored, self.text) = (read.problems, read.ignored, Some(text));
        if self.problems.is_empty() {
            (self.objects, self.was_good, self.is_kept) = (read.objects, true, false);
        } else if !self.was_good {
            self.objects = read.objects.into_iter().filter(Object::is_policy).collect();
        }
    }
}

/// What one file says and what is wrong with it.
#[cfg(any(test, fuzzing))]
pub fn read(text: &str) -> (Vec<Object>, Vec<Problem>) {
    let read = Read::from_text(text);
    (read.objects, read.problems)
}

/// A problem of a file that has no place in it.
fn whole_file(reason: String) -> Problem {
    Problem { at: Position::default(), field: String::new(), reason }
}

#[derive(Default)]
struct Read {
    objects: Vec<Object>,
    problems: Vec<Problem>,
    ignored: Vec<Problem>,
}

impl Read {
    fn from_text(text: &str) -> Read {
        let mut read = Read::default();
        for chunk in document::split(text) {
            match document::parse(chunk) {
                Ok(node) if node.value == document::Value::Null => {}
                Ok(node) => read.add(&node, ""),
                Err(problem) => {
                    read.problems.push(problem);
                    let refused = refused::of_text(chunk).into_iter();
                    read.objects.extend(refused.map(|refused| Object::Refused(Arc::new(refused))));
                }
            }
        }
        read.check_names();
        read
    }

    fn add(&mut self, node: &document::Node, path: &str) {
        match objects::parse(node, path) {
            Parsed::Object(object) => self.objects.push(object),
            Parsed::Items(items) => items.iter().for_each(|(path, item)| self.add(item, path)),
            Parsed::Ignored(problem) => self.ignored.push(problem),
            Parsed::Refused(problems) => {
                self.problems.extend(problems);
                self.objects.extend(refused::of_document(node).map(|refused| Object::Refused(Arc::new(refused))));
            }
        }
    }

    /// Twice the same object in one file is a mistake of that file alone.
    fn check_names(&mut self) {
        let mut seen = BTreeMap::new();
        for object in &self.objects {
            if let Some(first) = seen.insert((object.kind(), object.name()), object.at()) {
                let reason = format!("{} {} is already defined in line {}", object.kind(), object.name(), first.line);
                self.problems.push(Problem { at: object.at(), field: "metadata.name".into(), reason });
            }
        }
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("is not a file"));
    }
    let bytes = metadata.len();
    if bytes > FILE_BYTES {
        return Err(io::Error::other(format!("{bytes} bytes are more than {FILE_BYTES}")));
    }
    std::fs::read_to_string(path)
}

/// Manifests below a folder. Hidden files are left out: editors' temporary files, and the `..data` links of mounted
/// ConfigMaps, whose files are seen through the links beside them. Links to folders are not followed: they can lead in
/// circles. A link that leads nowhere is listed, so that its file is missed rather than withdrawn.
pub(super) fn list(root: &Path, paths: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let path = entry.path();
        if path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with('.')) {
            continue;
        }
        let extension = path.extension().and_then(|extension| extension.to_str());
        if entry.file_type()?.is_dir() {
            list(&path, paths)?;
        } else if matches!(extension, Some("yaml" | "yml" | "json")) && !path.is_dir() {
            paths.insert(path);
        }
    }
    Ok(())
}
