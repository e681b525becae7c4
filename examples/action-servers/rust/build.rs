//! Generates the messages and stubs from the protos.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = "../../../protos";
    let files = protox::compile(["sec/v1/action_server.proto"], [protos])?;
    tonic_prost_build::configure()
        .build_client(false)
        .compile_fds(files)?;
    println!("cargo:rerun-if-changed={protos}");
    Ok(())
}
