//! JSON configurations, as SPDK's own tools read and write them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::Error;
use crate::nvme::NvmeController;

/// Methods to run in the library's subsystems, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Of each subsystem its methods.
    subsystems: Vec<Subsystem>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Subsystem {
    name: String,
    methods: Vec<Value>,
}

impl Config {
    /// No methods.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a configuration: `{"subsystems": [{"subsystem": "bdev", "config": [{"method": ...,
    /// "params": {...}}]}]}`.
    ///
    /// # Errors
    /// When it is not one.
    pub fn from_json(json: &str) -> Result<Self, Error> {
        let what = "SPDK configuration cannot be used";
        let value: Value =
            serde_json::from_str(json).map_err(|error| Error::new(what, error.to_string()))?;
        parse(&value).map_err(|why| {
            Error::new(what, why).help(
                "it looks like {\"subsystems\": [{\"subsystem\": \"bdev\", \"config\": [{\"method\": \
                 \"...\", \"params\": {...}}]}]}",
            )
        })
    }

    /// Reads a file with a configuration.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let what = || format!("SPDK configuration {} cannot be used", path.display());
        let text =
            fs::read_to_string(path).map_err(|error| Error::new(what(), error.to_string()))?;
        Self::from_json(&text).map_err(|error| Error::new(what(), error.to_string()))
    }

    /// Adds a method of a subsystem, behind what there is.
    #[must_use]
    pub fn method(mut self, subsystem: &str, method: &str, params: &Value) -> Self {
        let entry = json!({"method": method, "params": params});
        match self
            .subsystems
            .iter_mut()
            .find(|other| other.name == subsystem)
        {
            Some(subsystem) => subsystem.methods.push(entry),
            None => self.subsystems.push(Subsystem {
                name: subsystem.to_owned(),
                methods: vec![entry],
            }),
        }
        self
    }

    /// Makes a device in memory.
    #[must_use]
    pub fn malloc(self, name: &str, blocks: u64, block_bytes: u32) -> Self {
        let params = json!({"name": name, "num_blocks": blocks, "block_size": block_bytes});
        self.method("bdev", "bdev_malloc_create", &params)
    }

    /// Makes a device that forgets what is written.
    #[must_use]
    pub fn null(self, name: &str, blocks: u64, block_bytes: u32) -> Self {
        let params = json!({"name": name, "num_blocks": blocks, "block_size": block_bytes});
        self.method("bdev", "bdev_null_create", &params)
    }

    /// Makes a device of a file or a block device of the kernel, by Linux AIO.
    #[must_use]
    pub fn aio(self, name: &str, file: &str, block_bytes: u32) -> Self {
        let params = json!({"name": name, "filename": file, "block_size": block_bytes});
        self.method("bdev", "bdev_aio_create", &params)
    }

    /// Makes a device of a file or a block device of the kernel, by io_uring. SPDK has to be built
    /// with it.
    #[must_use]
    pub fn uring(self, name: &str, file: &str, block_bytes: u32) -> Self {
        let params = json!({"name": name, "filename": file, "block_size": block_bytes});
        self.method("bdev", "bdev_uring_create", &params)
    }

    /// Attaches a controller.
    #[must_use]
    pub fn nvme(self, controller: &NvmeController) -> Self {
        self.method("bdev", "bdev_nvme_attach_controller", &controller.params())
    }

    /// Looks for new drives on PCI every `period`, and attaches those that may be touched: the
    /// devices of the first are named after `HotInNvme0`. That drives have gone is seen without it.
    #[must_use]
    pub fn nvme_hotplug(self, period: Duration) -> Self {
        let period_us = u64::try_from(period.as_micros()).unwrap_or(u64::MAX);
        let params = json!({"enable": true, "period_us": period_us});
        self.method("bdev", "bdev_nvme_set_hotplug", &params)
    }

    /// With which the subsystems start. Unless it says otherwise, no module looks for partition tables,
    /// volumes and the like on new devices: who finds one has the device for itself, and what a user
    /// has written must not decide whether it can be opened.
    pub(crate) fn for_start(&self) -> Self {
        const METHOD: &str = "bdev_set_options";
        let mut methods = self
            .subsystems
            .iter()
            .flat_map(|subsystem| &subsystem.methods);
        if methods.any(|entry| entry["method"] == METHOD) {
            return self.clone();
        }
        let mut config = Self::new().method("bdev", METHOD, &json!({"bdev_auto_examine": false}));
        config.subsystems.extend_from_slice(&self.subsystems);
        config
    }

    /// The configuration as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        let subsystems: Vec<_> = self
            .subsystems
            .iter()
            .map(|subsystem| json!({"subsystem": subsystem.name, "config": subsystem.methods}))
            .collect();
        json!({"subsystems": subsystems}).to_string()
    }
}

fn parse(value: &Value) -> Result<Config, String> {
    let subsystems = value
        .get("subsystems")
        .and_then(Value::as_array)
        .ok_or("it has no list \"subsystems\"")?;
    let mut config = Config::new();
    for subsystem in subsystems {
        let name = subsystem
            .get("subsystem")
            .and_then(Value::as_str)
            .ok_or("an entry of \"subsystems\" has no name \"subsystem\"")?;
        let methods = match subsystem.get("config") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(methods)) => methods.clone(),
            Some(_) => return Err(format!("\"config\" of {name} is no list")),
        };
        if let Some(wrong) = methods.iter().find(|entry| !entry["method"].is_string()) {
            return Err(format!("{name} has an entry without \"method\": {wrong}"));
        }
        config.subsystems.push(Subsystem {
            name: name.to_owned(),
            methods,
        });
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_comes_out_as_it_went_in() {
        let text = r#"{"subsystems": [
            {"subsystem": "bdev", "config": [{"method": "a", "params": {"x": 1}}, {"method": "b"}]},
            {"subsystem": "sock", "config": null}, {"subsystem": "accel"}]}"#;
        let config = Config::from_json(text).unwrap();
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn what_is_no_configuration_says_why() {
        for (text, why) in [
            ("{", "EOF"),
            ("[]", "no list \"subsystems\""),
            (r#"{"subsystems": [{}]}"#, "no name"),
            (
                r#"{"subsystems": [{"subsystem": "bdev", "config": 1}]}"#,
                "no list",
            ),
            (
                r#"{"subsystems": [{"subsystem": "bdev", "config": [{}]}]}"#,
                "without \"method\"",
            ),
        ] {
            let error = Config::from_json(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn nothing_is_looked_for_on_devices_unless_it_is_asked_for() {
        let quiet = Config::new()
            .method("bdev", "first", &json!({}))
            .for_start();
        let json = quiet.to_json();
        assert!(
            json.find(r#""bdev_auto_examine":false"#) < json.find("first"),
            "{json}"
        );
        let own =
            Config::new().method("bdev", "bdev_set_options", &json!({"bdev_io_pool_size": 1}));
        assert_eq!(own.for_start(), own);
    }

    #[test]
    fn methods_of_a_subsystem_keep_their_order() {
        let config = Config::new()
            .method("bdev", "first", &json!({}))
            .method("accel", "other", &json!({}))
            .method("bdev", "second", &json!({}));
        let json = config.to_json();
        assert!(json.find("first").unwrap() < json.find("second").unwrap());
    }
}
