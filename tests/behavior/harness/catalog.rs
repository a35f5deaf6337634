//! A daemon with a catalog of its own, from definition files.

use super::Setup;

/// Our own node is `monitor1`, at an address of documentation; the files lie in the folder `consul.d`.
pub const CATALOG: &str = "[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.1\"\n\
                           [catalog.files]\ndirectory = \"<DIR>/consul.d\"\n";

/// A daemon with these definition files, and no upstream.
pub fn with_definitions(config: &str, files: &[(&str, &str)]) -> Setup {
    let setup = Setup::new(&(CATALOG.to_owned() + config)).file("consul.d/empty.json", "{}");
    files.iter().fold(setup, |setup, (name, text)| setup.file(&format!("consul.d/{name}"), text))
}

/// A file of services.
pub fn services(instances: &[String]) -> String {
    format!("{{\"services\": [{}]}}", instances.join(",\n"))
}

/// A service of this name with so many instances, from 192.0.2.10 on, without checks.
pub fn plain(name: &str, count: u8) -> String {
    let instance =
        |i| format!(r#"{{"name": "{name}", "id": "{name}{i}", "address": "192.0.2.{}", "port": 80}}"#, 10 + i);
    services(&(0..count).map(instance).collect::<Vec<_>>())
}
