//! Finds DataFusion's SQL logic tests: in a folder that the user names, or in the crate that ships them.
//!
//! The crate is no dependency of ours, because it would bring its features of DataFusion into every
//! build. Cargo fetches it for an empty project, and nothing of it is compiled.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// Names the folder that has `test_files`, or the folder `test_files` itself.
const FOLDER_VARIABLE: &str = "FORESHARD_SLT_CORPUS";

const CRATE: &str = "datafusion-sqllogictest";

/// The files that belong to the version of DataFusion that this workspace is built with.
const MANIFEST: &str = "[package]\nname = \"corpus\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
     [workspace]\n[dependencies]\ndatafusion-sqllogictest = \"=55.2.0\"\n";

/// Files that are not run, by the start of their path, and why.
const SKIPPED: [(&str, &str); 4] = [
    ("spark/", "functions and dialect of Spark, which are in another crate"),
    ("tpch/", "needs generated data; the reference runner leaves it out"),
    ("avro.slt", "needs the cargo feature avro of DataFusion"),
    ("encrypted_parquet.slt", "needs the cargo feature parquet_encryption of DataFusion"),
];

/// Files for which the reference runner registers tables or functions that the file cannot make.
const PREPARED: [&str; 14] = [
    "aggregate.slt",
    "arrow_field.slt",
    "async_udf.slt",
    "cast_extension_type_metadata.slt",
    "cte.slt",
    "dictionary_struct.slt",
    "dynamic_file.slt",
    "information_schema_columns.slt",
    "information_schema_table_types.slt",
    "joins.slt",
    "map.slt",
    "metadata.slt",
    "range_partitioning.slt",
    "union_function.slt",
];

/// Parts of paths that lead out of the crate.
const OUTSIDE: [&str; 3] = ["'../", "../../", "{ARROW_TEST_DATA}"];

/// The files in a folder of their own, where they may write. Goes when this goes.
#[derive(Debug)]
pub(super) struct Corpus {
    folder: TempDir,
    files: Vec<String>,
}

impl Corpus {
    /// Finds the files and copies them.
    pub(super) fn find() -> Result<Self> {
        let root = match std::env::var_os(FOLDER_VARIABLE) {
            Some(named) => named_root(PathBuf::from(named))?,
            None => fetched().with_context(|| {
                format!("cannot fetch {CRATE}; {FOLDER_VARIABLE} may name its folder instead")
            })?,
        };
        Self::in_crate(&root)
    }

    /// The files of one folder.
    pub(super) fn of(files: &Path) -> Result<Self> {
        let root = tempfile::tempdir()?;
        copy(files, &root.path().join("test_files"))?;
        Self::in_crate(root.path())
    }

    fn in_crate(root: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for part in ["test_files", "data"] {
            if root.join(part).is_dir() {
                copy(&root.join(part), &folder.path().join(part))?;
            }
        }
        let mut files = vec![];
        list(&folder.path().join("test_files"), "", &mut files)?;
        files.sort_unstable();
        ensure!(!files.is_empty(), "{} has no .slt files", root.display());
        Ok(Self { folder, files })
    }

    /// The folder that the files' relative paths start from.
    pub(super) fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Paths below `test_files`, sorted.
    pub(super) fn files(&self) -> &[String] {
        &self.files
    }

    /// Where a file is.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.root().join("test_files").join(file)
    }
}

/// Why a file is not run at all.
pub(super) fn skipped(file: &str) -> Option<&'static str> {
    SKIPPED.iter().find(|(start, _)| file.starts_with(start)).map(|(_, reason)| *reason)
}

/// Why plain DataFusion may fail on records of a file that the reference runner passes.
pub(super) fn lacks(file: &str, text: &str) -> &'static str {
    if PREPARED.contains(&file) {
        "uses what the reference runner registers for it"
    } else if OUTSIDE.iter().any(|part| text.contains(part)) {
        "reads files that the crate does not have"
    } else {
        "plain fails here too"
    }
}

fn named_root(named: PathBuf) -> Result<PathBuf> {
    if named.join("test_files").is_dir() {
        return Ok(named);
    }
    match named.parent() {
        Some(parent) if named.ends_with("test_files") && named.is_dir() => Ok(parent.to_owned()),
        _ => bail!("{FOLDER_VARIABLE} is {}; it must have a folder test_files", named.display()),
    }
}

/// Has Cargo fetch the crate, and returns where its sources are.
fn fetched() -> Result<PathBuf> {
    let project = tempfile::tempdir()?;
    std::fs::write(project.path().join("Cargo.toml"), MANIFEST)?;
    std::fs::create_dir(project.path().join("src"))?;
    std::fs::write(project.path().join("src/lib.rs"), "")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1"])
        .current_dir(project.path())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo names no packages")?;
    let package = packages.iter().find(|package| package["name"] == CRATE);
    let manifest = package.and_then(|package| package["manifest_path"].as_str());
    let manifest = manifest.with_context(|| format!("cargo does not name {CRATE}"))?;
    Ok(Path::new(manifest).parent().context("a manifest is in a folder")?.to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

fn list(folder: &Path, before: &str, files: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{before}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{name}/"), files)?;
        } else if name.ends_with(".slt") {
            files.push(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_of_the_version_that_is_compared() {
        assert!(MANIFEST.contains(&format!("\"={}\"", datafusion::DATAFUSION_VERSION)));
    }

    #[test]
    fn a_named_folder_must_have_test_files() {
        let folder = tempfile::tempdir().unwrap();
        assert!(named_root(folder.path().to_owned()).is_err());
        let inner = folder.path().join("test_files");
        std::fs::create_dir(&inner).unwrap();
        assert_eq!(named_root(folder.path().to_owned()).unwrap(), folder.path());
        assert_eq!(named_root(inner).unwrap(), folder.path());
    }

    #[test]
    fn files_are_listed_by_their_path_below_test_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("array")).unwrap();
        for file in ["b.slt", "a.slt", "array/c.slt", "array/d.slt.part"] {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        let mut files = vec![];
        list(folder.path(), "", &mut files).unwrap();
        files.sort_unstable();
        assert_eq!(files, ["a.slt", "array/c.slt", "b.slt"]);
    }

    #[test]
    fn what_is_left_out_has_a_reason() {
        assert!(skipped("spark/math/abs.slt").is_some());
        assert!(skipped("aggregate.slt").is_none());
        assert!(lacks("joins.slt", "").contains("registers"));
        assert!(lacks("window.slt", "LOCATION '../../testing/data/a.csv'").contains("files"));
        assert!(lacks("window.slt", "SELECT 1").contains("plain"));
    }
}
