//! Generates the glue of the two control services (what nodes ask the coordinator, and what it tells them) and
//! of KEDA's external scaler. Messages are written by hand in `src/serve/control/messages.rs` and
//! `src/serve/scaler/messages.rs`.

use tonic_build::manual::{Builder, Method, MethodBuilder, Service};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let coordinator = Service::builder()
        .name("Coordinator")
        .package("foreshard.v1")
        .method(method("join", "Join", "JoinRequest", "Welcome"))
        .method(method("report", "Report", "ReportRequest", "Heard"))
        .method(rows("fetch_segment", "FetchSegment", "FetchRequest"))
        .build();
    let node = Service::builder()
        .name("Node")
        .package("foreshard.v1")
        .method(method("tell", "Tell", "News", "Done"))
        .method(method("create_table", "CreateTable", "TableMessage", "Done"))
        .method(method("drop_table", "DropTable", "TableName", "Done"))
        .method(method("open", "Open", "OpenRequest", "Done"))
        .method(method("close", "Close", "PartitionMessage", "Done"))
        .method(method("precompute", "Precompute", "PrecomputeRequest", "Computed"))
        .method(method("output", "Output", "OutputRequest", "OutputReply"))
        .method(method("adopt", "Adopt", "AdoptRequest", "Done"))
        .method(method("state", "State", "StateRequest", "StateReply"))
        .method(method("adopt_state", "AdoptState", "AdoptStateRequest", "Done"))
        .method(method("set_rows", "SetRows", "RowsRequest", "Computed"))
        .method(method("drop_outputs", "DropOutputs", "DropOutputsRequest", "Dropped"))
        .build();
    // As in KEDA's externalscaler.proto.
    let scaler = Service::builder()
        .name("ExternalScaler")
        .package("externalscaler")
        .method(scaler("is_active", "IsActive", "ScaledObjectRef", "IsActiveResponse").build())
        .method(
            scaler("stream_is_active", "StreamIsActive", "ScaledObjectRef", "IsActiveResponse")
                .server_streaming()
                .build(),
        )
        .method(
            scaler("get_metric_spec", "GetMetricSpec", "ScaledObjectRef", "GetMetricSpecResponse")
                .build(),
        )
        .method(
            scaler("get_metrics", "GetMetrics", "GetMetricsRequest", "GetMetricsResponse").build(),
        )
        .build();
    Builder::new().compile(&[coordinator, node, scaler]);
}

fn scaler(name: &str, route: &str, input: &str, output: &str) -> MethodBuilder {
    builder("scaler", (name, route), input, output)
}

fn method(name: &str, route: &str, input: &str, output: &str) -> Method {
    builder("control", (name, route), input, output).build()
}

/// A method whose messages are in `src/serve/<service>/messages.rs`.
fn builder(service: &str, (name, route): (&str, &str), input: &str, output: &str) -> MethodBuilder {
    let path = |message: &str| path(service, message);
    Method::builder()
        .name(name)
        .route_name(route)
        .input_type(path(input))
        .output_type(path(output))
        .codec_path("tonic_prost::ProstCodec")
}

fn path(service: &str, message: &str) -> String {
    format!("crate::serve::{service}::messages::{message}")
}

/// A method that answers with a stream of rows, encoded as Arrow Flight does it.
fn rows(name: &str, route: &str, input: &str) -> Method {
    Method::builder()
        .name(name)
        .route_name(route)
        .input_type(path("control", input))
        .output_type("arrow_flight::FlightData")
        .codec_path("tonic_prost::ProstCodec")
        .server_streaming()
        .build()
}
