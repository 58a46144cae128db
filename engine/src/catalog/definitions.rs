//! The tables that are opened again at the next start, kept in one small file of the data folder.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use foreshard_actors::table::TableKind;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;

/// Name of the file in the data folder.
const FILE: &str = "tables.json";

/// Where a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Name in the catalog.
    pub name: String,
    /// How its rows are kept.
    pub kind: TableKind,
    /// Root of its files.
    pub url: String,
    /// Number of partitions; only read for tables over Parquet files.
    pub partitions: u32,
    /// What made it, if DataFusion reads its files itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<String>,
    /// Where the files of such a table are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locations: Vec<String>,
    /// Whether the part of the name before the first point is a schema.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_schema: bool,
}

/// The file.
#[derive(Debug)]
pub struct Definitions {
    path: PathBuf,
    writing: Mutex<()>,
}

impl Definitions {
    /// The definitions in this data folder, which need not exist yet.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self { path: data_dir.join(FILE), writing: Mutex::default() }
    }

    /// All definitions; none if there is no file.
    ///
    /// # Errors
    /// [`EngineError::Damaged`] if the file cannot be understood.
    pub fn read(&self) -> Result<Vec<Definition>, EngineError> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => {
                let message = format!("{}: {error}", self.path.display());
                return Err(EngineError::Io { message });
            }
        };
        serde_json::from_slice(&bytes).map_err(|error| EngineError::Damaged {
            message: format!("{}: {error}", self.path.display()),
        })
    }

    /// Adds a definition, durably.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn add(&self, definition: Definition) -> Result<(), EngineError> {
        self.change(|all| {
            all.retain(|other| other.name != definition.name);
            all.push(definition);
        })
    }

    /// Removes a definition, durably.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn remove(&self, name: &str) -> Result<(), EngineError> {
        self.change(|all| all.retain(|other| other.name != name))
    }

    fn change(&self, edit: impl FnOnce(&mut Vec<Definition>)) -> Result<(), EngineError> {
        let _writing = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut all = self.read()?;
        edit(&mut all);
        self.write(&all)
            .map_err(|source| EngineError::Unwritable { path: self.path.clone(), source })
    }

    /// Writes a new file next to the old one, syncs it, and gives it the name.
    fn write(&self, all: &[Definition]) -> std::io::Result<()> {
        let folder = self.path.parent().unwrap_or_else(|| Path::new("."));
        std::fs::create_dir_all(folder)?;
        let new = self.path.with_extension("json.new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(all)?)?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        std::fs::File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_survive_and_a_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let definitions = Definitions::new(&folder.path().join("data"));
        assert_eq!(definitions.read().unwrap(), []);
        let one = Definition {
            name: "t".into(),
            kind: TableKind::Managed,
            url: "file:///t".into(),
            partitions: 4,
            statement: None,
            locations: vec![],
            in_schema: false,
        };
        definitions.add(one.clone()).unwrap();
        assert_eq!(Definitions::new(&folder.path().join("data")).read().unwrap(), [one]);
        definitions.remove("t").unwrap();
        assert_eq!(definitions.read().unwrap(), []);
        std::fs::write(folder.path().join("data").join(FILE), "[{").unwrap();
        let error = definitions.read().unwrap_err().to_string();
        assert!(error.contains(FILE), "{error}");
    }
}
