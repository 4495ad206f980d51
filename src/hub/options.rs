//! Where the hub and the cache are.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

/// Where models come from and go to.
#[derive(Clone)]
pub struct HubOptions {
    /// The cache folder, which holds `models--<owner>--<name>`.
    pub cache: PathBuf,
    /// Address of the hub.
    pub endpoint: String,
    /// Access token, for models that need one.
    pub token: Option<String>,
    /// A transfer is given up when nothing comes for this long.
    pub stall: Duration,
    /// How often a broken transfer is resumed.
    pub retries: u32,
    /// Wait before the first resumption; doubled for each further one.
    pub retry_wait: Duration,
}

impl HubOptions {
    /// The user's own hub and cache: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` (else the token file
    /// that a login has left in `HF_HOME`), and the defaults of the hub's own tools.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if neither `HF_HOME` nor a home directory is set.
    pub fn from_env() -> Result<Self> {
        let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let home = match set("HF_HOME") {
            Some(home) => PathBuf::from(home),
            None => env::home_dir()
                .filter(|home| !home.as_os_str().is_empty())
                .map(|home| home.join(".cache/huggingface"))
                .ok_or_else(|| Error::Unavailable {
                    what: "a cache for models".to_owned(),
                    reason: "set HF_HOME to a folder".to_owned(),
                })?,
        };
        let cache = home.join("hub");
        let token = set("HF_TOKEN").or_else(|| hf_hub::Cache::new(cache.clone()).token());
        Ok(Self {
            cache,
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token,
            stall: Duration::from_secs(60),
            retries: 4,
            retry_wait: Duration::from_secs(1),
        })
    }
}

impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .finish_non_exhaustive()
    }
}
