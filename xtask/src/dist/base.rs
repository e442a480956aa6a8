//! What the programs need to start: their loader and libraries, found by the lists in the programs themselves, copied from
//! this machine's Debian packages. Which package each came from is kept, with its licence, where scanners look.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{read, root::Root};
use crate::shell;

/// Whoever is given no user by the runtime is nobody in particular, not root.
pub const USER: u32 = 65532;

/// A Debian package of which the image has a file.
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture.
    pub architecture: String,
}

/// Adds all that is not ours, and says whose it is.
///
/// # Errors
/// A library cannot be found, or is of no package.
pub fn add(root: &mut Root, programs: &[PathBuf]) -> Result<Vec<Package>> {
    let mut names = BTreeSet::new();
    for (place, source) in libraries(programs)? {
        root.program(&place, read(&source)?);
        names.insert(owner(&source)?);
    }
    // Says which distribution the packages are of; without it a scanner cannot judge them.
    root.file("usr/lib/os-release", read(Path::new("/usr/lib/os-release"))?);
    root.link("etc/os-release", "../usr/lib/os-release");
    names.insert("base-files".to_owned());
    root.file(
        "etc/passwd",
        format!("root:x:0:0:root:/:/sbin/nologin\nmesh:x:{USER}:{USER}:mesh:/:/sbin/nologin\n").into(),
    );
    root.file("etc/group", format!("root:x:0:\nmesh:x:{USER}:\n").into());
    root.file("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n".to_vec());
    names.iter().map(|name| package(root, name)).collect()
}

/// The loader and libraries of programs, and those of these: place in the image to file of this machine.
fn libraries(programs: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut pending = programs.to_vec();
    while let Some(file) = pending.pop() {
        for source in needs(&file)? {
            let name = source.file_name().and_then(|name| name.to_str()).context("a library has a name")?;
            let directory = source.parent().context("a library is in a directory")?;
            // The directory without links, because /lib is one; the name as it is asked for.
            let directory = fs::canonicalize(directory)?;
            let place = directory.join(name).to_string_lossy().trim_start_matches('/').to_owned();
            if found.insert(place, source.clone()).is_none() {
                pending.push(source);
            }
        }
    }
    Ok(found)
}

/// What an ELF file names as its loader and libraries. A static one names none.
fn needs(file: &Path) -> Result<Vec<PathBuf>> {
    let text = shell::answer(Command::new("readelf").args(["--program-headers", "--dynamic", "--wide"]).arg(file));
    let text = text.with_context(|| format!("`readelf` cannot read {}", file.display()))?;
    let (loader, names) = parse(&text);
    let libraries = names.into_iter().map(library).collect::<Result<Vec<_>>>()?;
    Ok(loader.map(PathBuf::from).into_iter().chain(libraries).collect())
}

/// The loader, and the names of libraries, in what readelf says.
fn parse(text: &str) -> (Option<&str>, Vec<&str>) {
    let between = |line: &'static str| {
        text.lines().filter_map(move |found| found.split_once(line)?.1.split_once(']').map(|(name, _)| name.trim()))
    };
    (between("[Requesting program interpreter:").next(), between("Shared library: [").collect())
}

/// Where the loader of Debian finds a library.
fn library(name: &str) -> Result<PathBuf> {
    let directory = format!("{}-linux-gnu", std::env::consts::ARCH);
    let places = ["/lib", "/usr/lib"].map(|above| Path::new(above).join(&directory).join(name));
    let found = places.into_iter().find(|place| place.exists());
    found.with_context(|| format!("{name} is in neither /lib/{directory} nor /usr/lib/{directory}"))
}

/// The package that a file is of. Debian's packages name some files by /lib and others by /usr/lib.
fn owner(file: &Path) -> Result<String> {
    let text = file.to_string_lossy();
    let moved = match text.strip_prefix("/usr") {
        Some(short) => short.to_owned(),
        None => format!("/usr{text}"),
    };
    for name in [text.as_ref(), &moved] {
        // NAME:ARCHITECTURE: FILE
        let found = shell::answer(Command::new("dpkg-query").args(["--search", name]));
        if let Some(package) = found.and_then(|line| line.split([':', ',']).next().map(str::to_owned)) {
            return Ok(package);
        }
    }
    bail!("{text} is of no Debian package: the image is made on Debian only (deploy/Dockerfile makes it anywhere)")
}

/// Records a package and its licence as Debian does.
fn package(root: &mut Root, name: &str) -> Result<Package> {
    let ask = |format: &str| shell::answer(Command::new("dpkg-query").args(["--show", "--showformat", format, name]));
    let text = ask("${Version} ${Architecture}").with_context(|| format!("dpkg does not know {name}"))?;
    let (version, architecture) = text.split_once(' ').context("dpkg says version and architecture")?;
    let status = shell::answer(Command::new("dpkg-query").args(["--status", name]));
    let status = status.with_context(|| format!("dpkg does not know {name}"))?;
    root.file(&format!("var/lib/dpkg/status.d/{name}"), (status + "\n").into());
    let licence = PathBuf::from(format!("/usr/share/doc/{name}/copyright"));
    root.file(&format!("usr/share/doc/{name}/copyright"), read(&fs::canonicalize(&licence).unwrap_or(licence))?);
    Ok(Package { name: name.to_owned(), version: version.to_owned(), architecture: architecture.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn loader_and_libraries_are_read_from_readelf() {
        let text = "  INTERP 0x000318\n      [Requesting program interpreter: /lib64/ld-linux-x86-64.so.2]\n\
                    Dynamic section at offset 0x1 contains 2 entries:\n\
                    0x0000000000000001 (NEEDED)             Shared library: [libgcc_s.so.1]\n\
                    0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]\n\
                    0x000000000000000e (SONAME)             Library soname: [libx.so.1]\n";
        assert_eq!(parse(text), (Some("/lib64/ld-linux-x86-64.so.2"), vec!["libgcc_s.so.1", "libc.so.6"]));
        assert_eq!(parse("There is no dynamic section in this file.\n"), (None, Vec::new()));
    }
}
