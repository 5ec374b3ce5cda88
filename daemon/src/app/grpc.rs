//! Apps that speak gRPC.
