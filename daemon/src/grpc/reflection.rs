//! Server reflection, v1 and v1alpha.

use std::sync::OnceLock;

use tonic::service::Routes;
use tonic_reflection::server::Builder;

use super::{api, mecha};

/// Services that the server lists.
const LISTED: [&str; 3] = [api::SERVICE, mecha::SERVICE, "grpc.health.v1.Health"];

/// Path prefixes that reflection answers.
pub(super) fn is_reflection(path: &str) -> bool {
    path.starts_with("/grpc.reflection.v1.ServerReflection/")
        || path.starts_with("/grpc.reflection.v1alpha.ServerReflection/")
}

/// The services, made when the first caller asks: most runs never need the memory.
#[derive(Debug, Default)]
pub(super) struct Reflection(OnceLock<Option<Routes>>);

impl Reflection {
    /// `None` if the descriptors of this build are broken.
    pub(super) fn routes(&self) -> Option<Routes> {
        self.0.get_or_init(build).clone()
    }
}

fn build() -> Option<Routes> {
    let builder = |own: &str| {
        let builder = Builder::configure()
            .register_encoded_file_descriptor_set(mecha_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        LISTED.into_iter().chain([own]).fold(builder, Builder::with_service_name)
    };
    let v1 = builder("grpc.reflection.v1.ServerReflection").build_v1().ok()?;
    let v1alpha = builder("grpc.reflection.v1alpha.ServerReflection").build_v1alpha().ok()?;
    Some(Routes::new(v1).add_service(v1alpha).prepare())
}
