//! An object store that fails when told to.

use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::Semaphore;

/// What happens to one put.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// It happens, and the caller hears of an error.
    LoseAnswer,
    /// It happens, and the caller hears that the name is taken (an answer lost, then a retry).
    SayTaken,
    /// It happens, and the caller never hears of it.
    NeverAnswer,
    /// It does not happen, and the caller hears of an error.
    Fail,
    /// It does not happen, and the caller is not allowed to.
    Refuse,
    /// It waits until the semaphore has a permit.
    Wait(Arc<Semaphore>),
}

/// Which put, and what happens to it.
#[derive(Clone, Debug)]
struct Rule {
    part_of_path: String,
    fault: Fault,
    times: u32,
}

/// Wraps a store.
#[derive(Clone, Debug)]
pub(super) struct Faulty {
    inner: Arc<dyn ObjectStore>,
    rules: Arc<Mutex<Vec<Rule>>>,
    puts: Arc<Mutex<Vec<String>>>,
}

impl Faulty {
    pub(super) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, rules: Arc::default(), puts: Arc::default() }
    }

    pub(super) fn on_put(&self, part_of_path: &str, fault: Fault, times: u32) {
        let part_of_path = part_of_path.to_owned();
        self.rules.lock().unwrap().push(Rule { part_of_path, fault, times });
    }

    /// Paths of puts that contain `part`.
    pub(super) fn puts(&self, part: &str) -> usize {
        self.puts.lock().unwrap().iter().filter(|path| path.contains(part)).count()
    }

    fn fault(&self, path: &Path) -> Option<Fault> {
        self.puts.lock().unwrap().push(path.to_string());
        let mut rules = self.rules.lock().unwrap();
        let rule = rules
            .iter_mut()
            .find(|rule| rule.times > 0 && path.as_ref().contains(&rule.part_of_path))?;
        rule.times -= 1;
        Some(rule.fault.clone())
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty")
    }
}

fn lost() -> Error {
    Error::Generic { store: "Faulty", source: "connection reset".into() }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let fault = self.fault(location);
        let path = location.to_string();
        match fault {
            Some(Fault::Fail) => return Err(lost()),
            Some(Fault::Refuse) => {
                return Err(Error::PermissionDenied { path, source: "read only".into() });
            }
            Some(Fault::Wait(ref gate)) => drop(gate.acquire().await.unwrap()),
            _ => {}
        }
        let result = self.inner.put_opts(location, payload, options).await?;
        match fault {
            Some(Fault::LoseAnswer) => Err(lost()),
            Some(Fault::SayTaken) => Err(Error::AlreadyExists { path, source: "412".into() }),
            Some(Fault::NeverAnswer) => std::future::pending().await,
            _ => Ok(result),
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if self.fault(location).is_some() {
            return Err(lost());
        }
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
