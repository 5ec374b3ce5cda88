//! The agent role: delivers documents to sidecars, resolves their secrets, reports what they run.
