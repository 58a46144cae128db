//! The tables of a node: files are opened where they are, rows of memory tables are fetched from the
//! coordinator.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use async_trait::async_trait;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use foreshard_actors::layout::Layout;
use foreshard_actors::node::Tables;
use foreshard_actors::segment::Segment;
use foreshard_actors::store::{ManagedTable, ParquetTable, StoreError};
use foreshard_actors::table::{Change, Committed, Snapshot, Table, TableKind, TableStore};
use futures::TryStreamExt;
use tonic::transport::Channel;

use super::generated::coordinator_client::CoordinatorClient;
use super::messages::{FetchRequest, TableMessage, given};

/// Longest wait until the coordinator begins to send rows.
const FETCH_MAX: Duration = Duration::from_secs(30);

/// The stores of all tables that the coordinator told of.
#[derive(Debug, Default)]
pub(super) struct NodeTables(RwLock<BTreeMap<String, Arc<dyn TableStore>>>);

impl Tables for NodeTables {
    fn store(&self, table: &str) -> Option<Arc<dyn TableStore>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(table).cloned()
    }
}

impl NodeTables {
    /// Opens a table; nothing happens if it is open.
    ///
    /// # Errors
    /// What the store says.
    pub(super) async fn create(
        &self,
        message: &TableMessage,
        coordinator: &CoordinatorClient<Channel>,
    ) -> Result<(), DataFusionError> {
        let table = message.table()?;
        let name = table.name.to_string();
        let store: Arc<dyn TableStore> = match table.kind {
            TableKind::Memory => Arc::new(RemoteTable::new(table, coordinator.clone())),
            kind => {
                let url = given(table.url.as_ref(), "url")?;
                let opened = match kind {
                    TableKind::Managed => open_managed(&name, url).await,
                    _ => open_parquet(&name, url, table.partitioning.partitions()).await,
                };
                opened.map_err(|error| DataFusionError::External(Box::new(error)))?
            }
        };
        self.0.write().unwrap_or_else(PoisonError::into_inner).entry(name).or_insert(store);
        Ok(())
    }

    /// Forgets a table.
    pub(super) fn forget(&self, table: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(table);
    }
}

async fn open_managed(name: &str, url: &url::Url) -> Result<Arc<dyn TableStore>, StoreError> {
    Ok(Arc::new(ManagedTable::open(name, url, None).await?))
}

async fn open_parquet(
    name: &str,
    url: &url::Url,
    partitions: u32,
) -> Result<Arc<dyn TableStore>, StoreError> {
    Ok(Arc::new(ParquetTable::open(name, url, None, partitions).await?))
}

/// A memory table of the coordinator's process: only read, segment by segment.
pub(super) struct RemoteTable {
    table: Arc<Table>,
    coordinator: CoordinatorClient<Channel>,
}

impl fmt::Debug for RemoteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteTable({})", self.table.name)
    }
}

impl RemoteTable {
    fn new(table: Table, coordinator: CoordinatorClient<Channel>) -> Self {
        Self { table: Arc::new(table), coordinator }
    }

    fn failed(segment: &Segment, source: Box<dyn std::error::Error + Send + Sync>) -> StoreError {
        let source = object_store::Error::Generic { store: "coordinator", source };
        StoreError::Io {
            action: "fetch of segment",
            path: segment.id.to_string(),
            source: Arc::new(source),
        }
    }

    fn read_only(&self) -> StoreError {
        let what =
            "its rows are in another process, which is the only one to write them".to_owned();
        StoreError::Unsupported { path: self.table.name.to_string(), what }
    }
}

#[async_trait]
impl TableStore for RemoteTable {
    fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Empty: a task brings the segments it reads.
    fn snapshot(&self) -> Arc<Snapshot> {
        let layout = Arc::new(Layout::new(&self.table.partitioning));
        let partitions = vec![Arc::default(); layout.places() as usize];
        Arc::new(Snapshot { table: Arc::clone(&self.table), version: 0, layout, partitions })
    }

    async fn refresh(&self) -> Result<Arc<Snapshot>, StoreError> {
        Ok(self.snapshot())
    }

    async fn commit(&self, _change: Change) -> Result<Committed, StoreError> {
        Err(self.read_only())
    }

    async fn read(
        &self,
        segment: &Segment,
        projection: Option<&[usize]>,
    ) -> Result<SendableRecordBatchStream, StoreError> {
        let schema: SchemaRef = match projection {
            None => Arc::clone(&self.table.schema),
            Some(columns) => {
                let projected = self.table.schema.project(columns);
                Arc::new(projected.map_err(|error| Self::failed(segment, Box::new(error)))?)
            }
        };
        let columns = projection.unwrap_or_default().iter();
        let request = FetchRequest {
            table: self.table.name.to_string(),
            segment: segment.id.0.to_be_bytes().to_vec(),
            partition: segment.partition,
            is_projected: projection.is_some(),
            columns: columns.filter_map(|column| u32::try_from(*column).ok()).collect(),
        };
        let mut coordinator = self.coordinator.clone();
        let answer = tokio::time::timeout(FETCH_MAX, coordinator.fetch_segment(request)).await;
        let answer = answer.map_err(|elapsed| Self::failed(segment, Box::new(elapsed)))?;
        let answer = answer.map_err(|status| Self::failed(segment, Box::new(status)))?;
        let pieces = answer.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
        let rows = FlightRecordBatchStream::new_from_flight_data(pieces)
            .map_err(|error| DataFusionError::External(Box::new(error)));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}
