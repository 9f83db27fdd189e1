//! The `model_index.json` of a pipeline.

use std::path::Path;

use serde_json::Value;

use super::config::object;
use crate::error::Error;

/// The content of the index that is used here.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) class: Option<String>,
    names: Vec<String>,
}

impl Index {
    /// Reads the index of a folder. `None` if there is none.
    ///
    /// # Errors
    /// The file can't be read, or is not a JSON object.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join("model_index.json");
        if !path.is_file() {
            return Ok(None);
        }
        let index = object(&path)?;
        let class = index.get("_class_name").and_then(Value::as_str).map(str::to_owned);
        // A component that the pipeline does not use has null for library and class.
        let is_there = |value: &Value| value.as_array().is_some_and(|pair| pair.iter().any(|part| !part.is_null()));
        let names = index.iter().filter(|(_, value)| is_there(value)).map(|(name, _)| name.clone()).collect();
        Ok(Some(Self { class, names }))
    }

    /// Returns whether the index names a component.
    pub(super) fn names(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }
}
