//! deploy/Dockerfile, from the lists that the image itself is made from: for those who have a container engine, or no
//! Debian. It builds the same files by the same verb.

use serde_json::Value;

use super::{Facts, NAME, VERSION, base::USER, image};
use crate::setup;

/// Where it is.
pub const PLACE: &str = "deploy/Dockerfile";
const TOOLCHAIN: &str = env!("CARGO_PKG_RUST_VERSION");

/// Its text.
pub fn text() -> String {
    let packages = setup::of_image().join(" \\\n        ");
    // What differs from commit to commit is given by who builds: --label.
    let facts = Facts { name: format!("{NAME}:{VERSION}"), revision: String::new(), epoch: 0, created: String::new() };
    let labels = image::labels(&facts);
    let labels = labels.as_object().into_iter().flatten().filter(|(_, value)| *value != "");
    let labels: Vec<String> = labels.map(|(name, value)| format!("{name}={value}")).collect();
    format!(
        "# Written by `cargo xtask render`. `cargo xtask dist` makes the same image without a container engine.\n\
         #   docker build -f {PLACE} -t {NAME}:{VERSION} .\n\
         FROM debian:bookworm AS build\n\
         RUN apt-get update && apt-get install --yes --no-install-recommends \\\n        {packages}\n\
         RUN curl --proto =https --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal \\\n        \
         --default-toolchain {TOOLCHAIN}\n\
         ENV PATH=/root/.cargo/bin:$PATH\n\
         WORKDIR /mesh\n\
         COPY . .\n\
         RUN cargo xtask dist --root /image\n\
         \n\
         FROM scratch\n\
         LABEL {}\n\
         COPY --from=build /image /\n\
         ENV {}\n\
         USER {USER}:{USER}\n\
         WORKDIR /\n\
         CMD {}\n",
        labels.join(" \\\n      "),
        image::PATH,
        Value::from(image::COMMAND.to_vec()),
    )
}
