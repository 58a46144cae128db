//! A prefix of an object store holds what was written, and is removed when its process is dead.

use std::ops::Sub;

use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};

use super::*;

async fn names(store: &dyn ObjectStore) -> Vec<String> {
    let all: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
    let mut names: Vec<String> = all.iter().map(|object| object.location.to_string()).collect();
    names.sort();
    names
}

/// Runs what may wait on a thread that may.
async fn waiting<T: Send + 'static>(
    bucket: &Arc<Bucket>,
    act: impl FnOnce(&Bucket) -> T + Send + 'static,
) -> T {
    let bucket = Arc::clone(bucket);
    tokio::task::spawn_blocking(move || act(&bucket)).await.unwrap()
}

#[tokio::test]
async fn what_was_written_comes_back_and_goes() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let bucket = Arc::new(Bucket::open(Arc::clone(&store), Path::from("spill")).await.unwrap());
    waiting(&bucket, |bucket| bucket.write("1", b"four".to_vec()).unwrap()).await;
    assert_eq!(waiting(&bucket, |bucket| bucket.read("1", 4)).await.unwrap(), b"four");
    assert!(waiting(&bucket, |bucket| bucket.read("1", 3)).await.is_none(), "another length");
    assert!(waiting(&bucket, |bucket| bucket.read("2", 4)).await.is_none(), "never written");
    waiting(&bucket, |bucket| bucket.delete("1")).await;
    waiting(&bucket, |bucket| bucket.delete("1")).await;
    assert!(waiting(&bucket, |bucket| bucket.read("1", 4)).await.is_none(), "deleted");
    waiting(&bucket, |bucket| bucket.write("3", b"left".to_vec()).unwrap()).await;
    waiting(&bucket, Bucket::remove).await;
    assert_eq!(names(&*store).await, [""; 0]);
}

/// A store whose clock is as much ahead, for objects that are written from now on.
#[derive(Debug)]
struct Aged {
    inner: Arc<InMemory>,
    /// Prefixes whose objects are old.
    old: Vec<&'static str>,
}

impl fmt::Display for Aged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Aged({})", self.inner)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Aged {
    async fn put_opts(
        &self,
        location: &Path,
        payload: object_store::PutPayload,
        options: object_store::PutOptions,
    ) -> object_store::Result<object_store::PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: object_store::PutMultipartOptions,
    ) -> object_store::Result<Box<dyn object_store::MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: object_store::GetOptions,
    ) -> object_store::Result<object_store::GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: futures::stream::BoxStream<'static, object_store::Result<Path>>,
    ) -> futures::stream::BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(
        &self,
        prefix: Option<&Path>,
    ) -> futures::stream::BoxStream<'static, object_store::Result<ObjectMeta>> {
        let old = self.old.clone();
        let aged = move |mut object: ObjectMeta| {
            if old.iter().any(|old| object.location.as_ref().starts_with(old)) {
                object.last_modified = object.last_modified.sub(DEAD_AFTER * 2);
            }
            object
        };
        self.inner.list(prefix).map_ok(aged).boxed()
    }

    async fn list_with_delimiter(
        &self,
        prefix: Option<&Path>,
    ) -> object_store::Result<object_store::ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: object_store::CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn what_a_dead_process_left_is_removed_and_nothing_else() {
    let inner = Arc::new(InMemory::new());
    for name in ["spill/dead/alive", "spill/dead/1", "spill/live/alive", "spill/live/1"] {
        inner.put(&Path::from(name), "x".into()).await.unwrap();
    }
    // Old, but nobody says whose it is; and not below the prefix at all.
    for name in ["spill/own/1", "other/dead/alive"] {
        inner.put(&Path::from(name), "x".into()).await.unwrap();
    }
    let old = vec!["spill/dead/", "spill/own/", "other/"];
    let store: Arc<dyn ObjectStore> = Arc::new(Aged { inner: Arc::clone(&inner), old });
    let bucket = Arc::new(Bucket::open(store, Path::from("spill")).await.unwrap());
    waiting(&bucket, Bucket::remove).await;
    let left = ["other/dead/alive", "spill/live/1", "spill/live/alive", "spill/own/1"];
    assert_eq!(names(&*inner).await, left);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_given_up() {
    // So long that time does not pass by it before the reader wakes.
    let slow =
        ThrottleConfig { wait_get_per_call: REQUEST_TIME_MAX * 10_000, ..Default::default() };
    let store = Arc::new(ThrottledStore::new(InMemory::new(), ThrottleConfig::default()));
    let shared: Arc<dyn ObjectStore> = Arc::clone(&store) as Arc<dyn ObjectStore>;
    let bucket = Arc::new(Bucket::open(shared, Path::from("spill")).await.unwrap());
    waiting(&bucket, |bucket| bucket.write("1", b"four".to_vec()).unwrap()).await;
    store.config_mut(|config| *config = slow);
    let reading = tokio::task::spawn_blocking(move || bucket.read("1", 4));
    // Time that is paused stands still while a thread may wait.
    while !reading.is_finished() {
        tokio::time::advance(REQUEST_TIME_MAX / 4).await;
    }
    assert!(reading.await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_uses_its_objects_says_that_it_lives() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let bucket = Arc::new(Bucket::open(Arc::clone(&store), Path::from("spill")).await.unwrap());
    let mark = bucket.prefix.clone().join(ALIVE);
    store.delete(&mark).await.unwrap();
    waiting(&bucket, |bucket| bucket.write("1", b"one".to_vec()).unwrap()).await;
    assert!(store.head(&mark).await.is_err(), "said so a moment ago");
    tokio::time::advance(ALIVE_EVERY * 2).await;
    waiting(&bucket, |bucket| bucket.read("1", 3)).await.unwrap();
    assert!(store.head(&mark).await.is_ok());
}

#[tokio::test]
async fn what_names_no_store_is_a_clear_error() {
    let error = Bucket::open_url("s3//bucket").await.map(drop).unwrap_err();
    assert_eq!(error.code(), "FS-SPILL-1");
    assert!(error.to_string().contains("s3//bucket"), "{error}");
    let error = Bucket::open_url("teapot://bucket/x").await.map(drop).unwrap_err();
    assert_eq!(error.code(), "FS-SPILL-2");
    assert!(error.to_string().contains("teapot://bucket/x"), "{error}");
}
