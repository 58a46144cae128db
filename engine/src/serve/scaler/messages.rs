//! What KEDA asks and is told, as in its `externalscaler.proto`.

use std::collections::HashMap;

use prost::Message;

/// What is scaled, and what its trigger says.
#[derive(Clone, PartialEq, Message)]
pub struct ScaledObjectRef {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// The metadata of its trigger.
    #[prost(map = "string, string", tag = "3")]
    pub scaler_metadata: HashMap<String, String>,
}

/// Whether there should be any pods.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct IsActiveResponse {
    /// True if so.
    #[prost(bool, tag = "1")]
    pub result: bool,
}

/// What is measured.
#[derive(Clone, PartialEq, Message)]
pub struct GetMetricSpecResponse {
    /// One.
    #[prost(message, repeated, tag = "1")]
    pub metric_specs: Vec<MetricSpec>,
}

/// One number, and how much of it one pod carries.
#[derive(Clone, PartialEq, Message)]
pub struct MetricSpec {
    /// Its name.
    #[prost(string, tag = "1")]
    pub metric_name: String,
    /// How much one pod carries, for KEDA before 2.14.
    #[prost(int64, tag = "2")]
    pub target_size: i64,
    /// The same, for later ones.
    #[prost(double, tag = "3")]
    pub target_size_float: f64,
}

/// What is the number now?
#[derive(Clone, PartialEq, Message)]
pub struct GetMetricsRequest {
    /// Of what.
    #[prost(message, optional, tag = "1")]
    pub scaled_object_ref: Option<ScaledObjectRef>,
    /// Which.
    #[prost(string, tag = "2")]
    pub metric_name: String,
}

/// The number now.
#[derive(Clone, PartialEq, Message)]
pub struct GetMetricsResponse {
    /// One.
    #[prost(message, repeated, tag = "1")]
    pub metric_values: Vec<MetricValue>,
}

/// One number.
#[derive(Clone, PartialEq, Message)]
pub struct MetricValue {
    /// Its name.
    #[prost(string, tag = "1")]
    pub metric_name: String,
    /// It, for KEDA before 2.14.
    #[prost(int64, tag = "2")]
    pub metric_value: i64,
    /// It, for later ones.
    #[prost(double, tag = "3")]
    pub metric_value_float: f64,
}
