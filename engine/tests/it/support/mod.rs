//! What the differential tests share: data, random queries, engines of several shapes, a random
//! controller, and plain DataFusion as the judge.

pub(crate) mod controller;
pub(crate) mod data;
pub(crate) mod functions;
pub(crate) mod model;
pub(crate) mod oracle;
pub(crate) mod random;
pub(crate) mod rows;
pub(crate) mod runtime;
pub(crate) mod setups;
pub(crate) mod trial;
