//! The injector role: adds the sidecar to opted-in pods, and keeps that working.
