//! Generates ucrpc services and clients from .proto files.
