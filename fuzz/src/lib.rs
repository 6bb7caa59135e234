//! What the fuzz targets check.

pub mod rpc;
