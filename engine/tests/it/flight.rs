//! Flight SQL, as the client of the arrow-flight crate sees it.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use arrow_flight::FlightInfo;
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{CommandGetDbSchemas, CommandGetTables, SqlInfo};
use foreshard::serve::Servers;
use foreshard::{Config, Engine};
use futures::TryStreamExt;
use tonic::transport::{Channel, Endpoint};

use crate::support::runtime;

type Client = FlightSqlServiceClient<Channel>;

fn with_client<F, Running>(settings: &'static [(&str, &str)], test: F)
where
    F: FnOnce(Client) -> Running + Send + 'static,
    Running: Future<Output = ()> + Send,
{
    runtime::run(async move {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default().with_data_dir(folder.path().to_owned()).unwrap();
        let always = [("serve.flight-address", "127.0.0.1:0"), ("serve.http-address", "off")];
        for (key, value) in always.iter().chain(settings) {
            config = config.set(key, value).unwrap();
        }
        let engine = Engine::builder().config(config).manual_ticks(true).start().await.unwrap();
        let make =
            "CREATE TABLE trades (id BIGINT, name TEXT) AS VALUES (1, 'a'), (2, 'b'), (3, 'c')";
        engine.sql(make).await.unwrap();
        let servers = Servers::start(&engine).await.unwrap();
        let address = format!("http://{}", servers.flight_address().unwrap());
        let channel = Endpoint::from_shared(address).unwrap().connect().await.unwrap();
        test(Client::new(channel)).await;
        servers.stop().await;
        engine.shutdown().await.unwrap();
    });
}

async fn rows(client: &mut Client, info: FlightInfo) -> Result<Vec<RecordBatch>, FlightError> {
    let mut batches = Vec::new();
    for endpoint in info.endpoint {
        let ticket = endpoint.ticket.expect("a ticket");
        let got = client.do_get(ticket).await?;
        batches.extend(got.try_collect::<Vec<_>>().await?);
    }
    Ok(batches)
}

fn numbers(batches: &[RecordBatch]) -> Vec<i64> {
    let columns = batches.iter().map(|batch| batch.column(0).as_primitive::<Int64Type>());
    columns.flat_map(|column| column.values().to_vec()).collect()
}

fn between(low: i64, name: &str) -> RecordBatch {
    let low: ArrayRef = Arc::new(Int64Array::from(vec![low]));
    let name: ArrayRef = Arc::new(StringArray::from(vec![name]));
    RecordBatch::try_from_iter([("$1", low), ("$2", name)]).unwrap()
}

#[test]
fn a_statement_gives_its_rows() {
    with_client(&[], |mut client| async move {
        let sql = "SELECT id FROM trades WHERE id > 1 ORDER BY id";
        let info = client.execute(sql.to_owned(), None).await.unwrap();
        assert_eq!(info.clone().try_decode_schema().unwrap().field(0).name(), "id");
        assert_eq!(numbers(&rows(&mut client, info).await.unwrap()), [2, 3]);
    });
}

#[test]
fn a_prepared_statement_runs_again_with_other_parameters() {
    with_client(&[], |mut client| async move {
        let sql = "SELECT id FROM trades WHERE id >= $1 AND name <> $2 ORDER BY id";
        let mut prepared = client.prepare(sql.to_owned(), None).await.unwrap();
        assert_eq!(prepared.parameter_schema().unwrap().fields().len(), 2);
        for (low, name, expected) in [(1, "b", vec![1, 3]), (2, "c", vec![2])] {
            prepared.set_parameters(between(low, name)).unwrap();
            let info = prepared.execute().await.unwrap();
            assert_eq!(numbers(&rows(&mut client, info).await.unwrap()), expected);
        }
        prepared.close().await.unwrap();
    });
}

#[test]
fn several_rows_of_parameters_give_their_answers_one_after_the_other() {
    with_client(&[], |mut client| async move {
        let sql = "SELECT id FROM trades WHERE id = $1";
        let mut prepared = client.prepare(sql.to_owned(), None).await.unwrap();
        let ids: ArrayRef = Arc::new(Int64Array::from(vec![3, 1]));
        prepared.set_parameters(RecordBatch::try_from_iter([("$1", ids)]).unwrap()).unwrap();
        let info = prepared.execute().await.unwrap();
        assert_eq!(numbers(&rows(&mut client, info).await.unwrap()), [3, 1]);
    });
}

#[test]
fn updates_tell_how_many_rows_they_changed() {
    with_client(&[], |mut client| async move {
        let insert = "INSERT INTO trades VALUES (4, 'd'), (5, 'e')";
        assert_eq!(client.execute_update(insert.to_owned(), None).await.unwrap(), 2);
        let delete = "DELETE FROM trades WHERE id >= $1 AND name <> $2";
        let mut prepared = client.prepare(delete.to_owned(), None).await.unwrap();
        prepared.set_parameters(between(4, "d")).unwrap();
        assert_eq!(prepared.execute_update().await.unwrap(), 1);
        let info = client.execute("SELECT count(*) FROM trades".to_owned(), None).await.unwrap();
        assert_eq!(numbers(&rows(&mut client, info).await.unwrap()), [4]);
    });
}

#[test]
fn a_change_that_comes_as_a_query_is_made_at_once_and_only_once() {
    with_client(&[], |mut client| async move {
        let insert = "INSERT INTO trades VALUES (4, 'd'), (5, 'e')";
        let info = client.execute(insert.to_owned(), None).await.unwrap();
        assert_eq!((info.endpoint.len(), info.total_records), (0, 2));
        let insert = "INSERT INTO trades VALUES ($1, $2)";
        let mut prepared = client.prepare(insert.to_owned(), None).await.unwrap();
        assert_eq!(prepared.dataset_schema().unwrap().fields().len(), 0);
        prepared.set_parameters(between(6, "f")).unwrap();
        assert_eq!(prepared.execute().await.unwrap().total_records, 1);
        let info = client.execute("SELECT count(*) FROM trades".to_owned(), None).await.unwrap();
        assert_eq!(numbers(&rows(&mut client, info).await.unwrap()), [6]);
    });
}

#[test]
fn an_error_has_its_code_in_the_text_of_its_status() {
    with_client(&[("limits.open-statements", "1")], |mut client| async move {
        let unknown = client.execute("SELECT * FROM tradse".to_owned(), None).await.unwrap_err();
        let text = unknown.to_string();
        assert!(text.contains("[FS-SQL-2] unknown table tradse; did you mean trades?"), "{text}");

        let division = "SELECT id / (id - id) FROM trades";
        let info = client.execute(division.to_owned(), None).await.unwrap();
        let late = rows(&mut client, info).await.unwrap_err().to_string();
        assert!(late.contains("[FS-SQL-15]"), "{late}");

        let first = client.prepare("SELECT $1 + id FROM trades".to_owned(), None).await.unwrap();
        let second = client.prepare("SELECT 2".to_owned(), None).await.err().unwrap().to_string();
        assert!(second.contains("[FS-RUN-8]"), "{second}");
        first.close().await.unwrap();
        assert!(client.prepare("SELECT 2".to_owned(), None).await.is_ok());
    });
}

#[test]
fn a_statement_whose_parameters_are_missing_is_refused() {
    with_client(&[], |mut client| async move {
        let sql = "SELECT id FROM trades WHERE id = $1";
        let mut prepared = client.prepare(sql.to_owned(), None).await.unwrap();
        let info = prepared.execute().await.unwrap();
        let error = rows(&mut client, info).await.unwrap_err().to_string();
        assert!(error.contains("[FS-SQL-11]"), "{error}");
    });
}

#[test]
fn the_database_describes_itself() {
    with_client(&[], |mut client| async move {
        let asked = CommandGetTables {
            table_name_filter_pattern: Some("tra%".to_owned()),
            include_schema: true,
            ..CommandGetTables::default()
        };
        let info = client.get_tables(asked).await.unwrap();
        let tables = rows(&mut client, info).await.unwrap();
        assert_eq!(tables[0].num_rows(), 1);
        assert_eq!(tables[0].column(2).as_string::<i32>().value(0), "trades");

        let info = client.get_db_schemas(CommandGetDbSchemas::default()).await.unwrap();
        let schemas = rows(&mut client, info).await.unwrap();
        let names: Vec<_> = schemas[0].column(1).as_string::<i32>().iter().flatten().collect();
        assert!(names.contains(&"public") && names.contains(&"system"), "{names:?}");

        let info = client.get_catalogs().await.unwrap();
        assert_eq!(rows(&mut client, info).await.unwrap()[0].num_rows(), 1);
        let info = client.get_table_types().await.unwrap();
        assert!(rows(&mut client, info).await.unwrap()[0].num_rows() > 0);
        let info = client.get_sql_info(vec![SqlInfo::FlightSqlServerName]).await.unwrap();
        assert_eq!(rows(&mut client, info).await.unwrap()[0].num_rows(), 1);
    });
}

#[test]
fn anybody_may_shake_hands() {
    with_client(&[], |mut client| async move {
        assert_eq!(client.handshake("anna", "secret").await.unwrap(), "anonymous");
    });
}
