use std::{collections::HashMap, fs, net::SocketAddr};

use super::*;

/// A system that names no upstream and on which only loopback is local.
fn bare_system() -> System {
    System { resolv_confs: Vec::new(), is_local: |address| address.ip().is_loopback() }
}

fn source(file: impl Into<PathBuf>) -> Source {
    Source { file: Some(file.into()), overrides: Overrides::default(), system: bare_system() }
}

/// Loads a configuration written as text.
fn load(text: &str, overrides: Overrides) -> Result<Loaded, Vec<String>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    let faults = Source { overrides, ..source(file.path()) }.load();
    faults.map_err(|faults| faults.iter().map(Fault::to_string).collect())
}

/// The comment lines at the top of a fixture are what its messages must contain, a line each.
#[test]
fn each_fixture_provokes_its_messages_and_no_others() {
    // Relative, as cargo starts tests in the package's folder: messages name no folder of this machine.
    let mut wrong = String::new();
    for entry in fs::read_dir("tests/fixtures/config").unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let expected: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("# ")).collect();
        let faults = source(&path).load().err().unwrap_or_default();
        // What is wrong with the files that a fixture names is the zone room's matter.
        let own = faults.iter().filter(|fault| !matches!(fault.problem, Problem::Zone(_)));
        let found: Vec<String> = own.map(Fault::to_string).collect();
        if found.len() != expected.len() || !found.iter().zip(&expected).all(|(f, e)| f.contains(e)) {
            wrong += &format!("{}\nexpected {expected:#?}\nfound {found:#?}\n", path.display());
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn reference_is_the_default_and_mentions_every_key() {
    let reference = include_str!("reference.toml");
    assert_eq!(toml::from_str::<Config>(reference).unwrap(), Config::default());
    // What has no default stands there as an example: a line that begins with "#" and no blank.
    let is_example = |line: &str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
    let key = |line: &'static str| Some(line.split_once(" = ")?.0).filter(|key| !key.contains('#'));
    let shown: Vec<&str> = reference.lines().map(|line| if is_example(line) { &line[1..] } else { line }).collect();
    let loaded = load(&shown.join("\n"), Overrides::default()).unwrap();
    assert!(!loaded.config.forward.is_empty() && !loaded.config.refuse.is_empty() && !loaded.config.zone.is_empty());

    let headings = shown.clone();
    let is_section =
        |name: &str| headings.iter().any(|line| line.strip_prefix('[').is_some_and(|rest| rest.starts_with(name)));
    let mut sections = HashMap::new();
    let mut section = "";
    for line in shown {
        match line.strip_prefix('[') {
            Some(name) => section = name.trim_matches(['[', ']']),
            None => sections.entry(section).or_insert_with(Vec::new).extend(key(line)),
        }
    }
    for (section, keys) in [
        ("server", keys::<server::Config>()),
        ("server.rate_limit", keys::<server::RateLimitConfig>()),
        ("forward", keys::<forward::Config>()),
        ("limits", keys::<budget::Config>()),
        ("refuse", keys::<Refuse>()),
        ("zones", keys::<zone::Config>()),
        ("zone", keys::<zone::FileConfig>()),
        ("catalog", keys::<catalog::Config>()),
        ("catalog.soa", keys::<catalog::SoaConfig>()),
        ("catalog.files", keys::<catalog::FilesConfig>()),
        ("catalog.consul", keys::<consul::Config>()),
        ("catalog.api", keys::<catalog::ApiConfig>()),
        ("catalog.service.galeradb", keys::<catalog::policy::Rules>()),
        ("cache", keys::<cache::Config>()),
        ("control", keys::<control::Config>()),
    ] {
        // What is a section of its own has its own line above.
        let keys: Vec<_> = keys.into_iter().filter(|key| !is_section(&format!("{section}.{key}"))).collect();
        assert_eq!(sections.remove(section).unwrap_or_default(), keys, "[{section}] in the order of the code");
    }
    assert_eq!(sections.remove("").unwrap_or_default(), ["include"], "what is in no section");
    sections.retain(|_, keys| !keys.is_empty());
    assert!(sections.is_empty(), "{sections:?}");
    assert_eq!(keys::<Config>().len(), 10, "a new section belongs into the list above");
}

/// The keys of a section: serde names them to whoever uses another.
fn keys<T: serde::de::DeserializeOwned + fmt::Debug>() -> Vec<String> {
    let message = toml::from_str::<T>("no_such_key = 1").unwrap_err().message().to_owned();
    message.split('`').skip(3).step_by(2).map(Into::into).collect()
}

#[test]
fn with_no_file_names_go_where_the_system_sends_them() {
    let folder = tempfile::tempdir().unwrap();
    let resolv_conf = folder.path().join("resolv.conf");
    fs::write(&resolv_conf, "nameserver 127.0.0.1\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n").unwrap();
    let system = System { resolv_confs: vec![resolv_conf.clone()], ..bare_system() };
    let file = folder.path().join("empty.toml");
    fs::write(&file, "").unwrap();
    let loaded = Source { system, ..source(&file) }.load().unwrap();
    let ourselves = vec!["127.0.0.1:53".parse().unwrap()];
    assert_eq!(loaded.upstreams, Upstreams::System { file: resolv_conf, ourselves });
    assert_eq!(routes(&loaded), [". 192.0.2.53:53 [2001:db8::53]:53", "consul. 127.0.0.1:8600"]);
    assert_eq!(loaded.config.forward[1].serve_stale, Some(Duration::ZERO));
    let loaded = source(&file).load().unwrap();
    assert_eq!(
        (loaded.upstreams.clone(), routes(&loaded)),
        (Upstreams::Unknown, vec!["consul. 127.0.0.1:8600".into()])
    );
}

/// Each rule as its suffixes and upstreams.
fn routes(loaded: &Loaded) -> Vec<String> {
    let route = |rule: &forward::Rule| {
        let suffixes = rule.suffixes.iter().map(|suffix| suffix.get_ref().to_string());
        suffixes.chain(rule.upstreams.iter().map(ToString::to_string)).collect::<Vec<_>>().join(" ")
    };
    loaded.rules.iter().map(route).collect()
}

#[test]
fn a_default_rule_gives_way_to_whoever_claims_its_suffix() {
    let default = ["consul. 127.0.0.1:8600"].as_slice();
    for (text, expected) in [
        ("", default),
        ("[[forward]]\nsuffixes = ['Consul']\nupstreams = ['192.0.2.1:8600']", &["Consul. 192.0.2.1:8600"]),
        ("[[refuse]]\nsuffixes = ['consul']", &[]),
        ("[[zone]]\napex = 'consul'\nfile = 'x'", &[]),
        ("[[zone]]\napex = 'consul'\nfile = 'x'\nmode = 'overlay'", default), // lets through what it does not hold
        ("[[refuse]]\nsuffixes = ['dc1.consul']", default),
        ("[catalog.files]\ndirectory = 'x'", &[]), // we are the ones who know
        ("[catalog.consul]", default),             // asked while the agent is lost
        ("[catalog.consul]\naddress = 'http://192.0.2.7:8500'", &["consul. 192.0.2.7:8600"]),
        ("[catalog.consul]\naddress = 'http://0.0.0.0:8500'", default),
        ("[catalog]\ndomain = 'lab'\n[catalog.consul]", &["lab. 127.0.0.1:8600"]),
        (
            "[catalog.consul]\n[[forward]]\nsuffixes = ['consul']\nupstreams = ['192.0.2.1:8600']",
            &["consul. 192.0.2.1:8600"],
        ),
    ] {
        assert_eq!(routes(&load(text, Overrides::default()).unwrap()), expected, "{text}");
    }
}

#[test]
fn the_command_line_outranks_the_file() {
    let text = "[server]\nlisten = ['192.0.2.1']\n[[forward]]\nsuffixes = ['.', 'corp.example']\nupstreams = ['192.0.2.2']\n\
                [[forward]]\nsuffixes = ['consul']\nupstreams = ['192.0.2.3']";
    let overrides = Overrides {
        listen: vec!["127.0.0.1:5300".parse().unwrap()],
        upstreams: vec!["192.0.2.4".parse().unwrap(), "tcp://192.0.2.5".parse().unwrap()],
        zones: Some("zones".into()),
        services: None,
    };
    let loaded = load(text, overrides.clone()).unwrap();
    assert_eq!(loaded.config.server.listen, overrides.listen);
    assert_eq!(loaded.upstreams, Upstreams::Configured);
    assert_eq!(
        routes(&loaded),
        ["corp.example. 192.0.2.2:53", "consul. 192.0.2.3:53", ". 192.0.2.4:53 tcp://192.0.2.5:53"]
    );
    assert_eq!(loaded.config.zones.directory, Some(std::path::absolute("zones").unwrap()));
}

#[test]
fn the_command_line_is_checked_as_the_file_is() {
    let address = "127.0.0.1:5300".parse::<SocketAddr>().unwrap();
    let upstream = forward::UpstreamUrl::udp(address);
    for (overrides, expected) in [
        (
            Overrides { listen: vec![address.into()], upstreams: vec![upstream.clone()], ..Overrides::default() },
            "command line: upstream 127.0.0.1:5300 is ourselves",
        ),
        (
            Overrides { listen: vec![address.into(); 2], ..Overrides::default() },
            "command line: the address 127.0.0.1:5300 is listed",
        ),
        (
            Overrides { upstreams: vec![upstream; 2], ..Overrides::default() },
            "command line: upstream 127.0.0.1:5300 stands",
        ),
    ] {
        let faults = load("", overrides).unwrap_err();
        assert!(faults.len() == 1 && faults[0].starts_with(expected), "{expected}: {faults:?}");
    }
}

#[test]
fn paths_start_from_the_folder_of_the_file() {
    let loaded = source("tests/fixtures/config/good_with_everything.toml").load().unwrap();
    let folder = std::path::absolute("tests/fixtures/config").unwrap();
    assert_eq!(loaded.config.zone[0].file, folder.join("site.zone"));
    assert_eq!(loaded.config.zones.directory, Some(folder.join("zones")));
    assert_eq!(loaded.config.zones.hosts, [PathBuf::from("/etc/hosts")]);
    assert_eq!(loaded.config.server.state_directory, Some(folder.join("state")));
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault() {
    let faults = source("tests/fixtures/absent.toml").load().unwrap_err();
    let message = faults[0].to_string();
    assert!(message.starts_with("tests/fixtures/absent.toml: cannot be read: No such file"), "{message}");
}

#[test]
fn a_configuration_is_read_back_as_written() {
    let loaded = source("tests/fixtures/config/good_with_everything.toml").load().unwrap();
    assert_eq!(toml::from_str::<Config>(&toml::to_string(&loaded.config).unwrap()).unwrap(), loaded.config);
}

#[test]
fn the_examples_have_no_fault() {
    source("examples/watershed.toml").load().unwrap();
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    folder
}

#[test]
fn included_files_add_their_sections_in_the_order_of_their_names() {
    let rule = |suffix: &str| format!("[[forward]]\nsuffixes = [\"{suffix}\"]\nupstreams = [\"192.0.2.1\"]\n");
    let folder = folder(&[
        (
            "main.toml",
            &("include = [\"conf.d/*.toml\", \"none.d/*\", \"conf.d/one.conf\"]\n".to_owned() + &rule("main")),
        ),
        ("conf.d/20-b.toml", &(rule("b") + "[cache]\nmax_ttl = \"1h\"\n[catalog.api]\nenable_registration = true\n")),
        ("conf.d/10-a.toml", &("[[zone]]\napex = \"z\"\nfile = \"z.zone\"\n".to_owned() + &rule("a"))),
        (
            "conf.d/one.conf",
            "[cache]\nsize = \"32MiB\"\n[catalog.api]\ntoken = \"secret\"\n[[refuse]]\nsuffixes = [\"r\"]\n",
        ),
        ("conf.d/.hidden.toml", "nonsense"),
        ("conf.d/old.toml~", "nonsense"),
    ]);
    let loaded = source(folder.path().join("main.toml")).load().unwrap();
    let suffixes: Vec<&str> =
        loaded.config.forward.iter().flat_map(|rule| &rule.suffixes).map(|suffix| suffix.get_ref().as_str()).collect();
    assert_eq!(suffixes, ["main", "a", "b"]);
    assert_eq!(loaded.config.cache.size.as_u64(), 32 << 20);
    assert_eq!(loaded.config.cache.max_ttl, Duration::from_secs(3600));
    assert!(loaded.config.catalog.api.enable_registration && loaded.config.catalog.api.token.is_some());
    assert_eq!(loaded.zones[0].path, folder.path().join("z.zone"), "from the folder of the main file");
    assert_eq!(loaded.refused.len(), 1);
}

#[test]
fn faults_of_included_files_name_their_file_and_line() {
    let folder = folder(&[
        (
            "main.toml",
            "include = [\"a.toml\", \"c.toml\", \"gone.toml\", \"d*/x.toml\", \"broken.toml\", \"*.toml\", \"latin.conf\"]\n\
             [cache]\nsize = \"32MiB\"\n[[forward]]\nsuffixes = [\"x\"]\nupstreams = [\"192.0.2.1\"]\n",
        ),
        ("a.toml", "\n[cache]\nsize = \"64MiB\"\nbogus = 1\n[server]\nlisten = [\"127.0.0.1:5300\"]\n"),
        (
            "c.toml",
            "include = [\"b.toml\"]\n\n[server]\nlisten = []\n\n[[forward]]\nsuffixes = [\"X.\"]\nupstreams = [\"nonsense\"]\n",
        ),
        ("broken.toml", "[cache]\n\nsize =\n"),
    ]);
    fs::write(folder.path().join("latin.conf"), b"# \xf6\n").unwrap();
    let faults = source(folder.path().join("main.toml")).load().unwrap_err();
    let found: Vec<String> =
        faults.iter().map(|fault| fault.to_string().replace(&format!("{}/", folder.path().display()), "")).collect();
    let expected = [
        "main.toml:1: include \"gone.toml\" cannot be read: ",
        "main.toml:1: only the last part of an include may have * or ?",
        "main.toml:1: include \"latin.conf\" is not UTF-8",
        "a.toml:3: cache.size stands at main.toml:3 already; remove one",
        "a.toml:4: unknown key `bogus`",
        "c.toml:1: a file that is included cannot include others",
        "c.toml:4: server.listen stands at a.toml:6 already",
        "c.toml:7: suffix X. stands at main.toml:5 already",
        "c.toml:8: ",
        "broken.toml:3: this is not TOML",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}, not {expected}");
    }
}

#[test]
fn a_variable_in_a_path_must_have_a_value() {
    let text = "[server]\ncertificate = \"${CREDENTIALS_DIRECTORY}/c.pem\"\nprivate_key = \"${HOME}/key.pem\"\n[zones]\n\
                hosts = [\"/etc/hosts\", \"$X/hosts\"]\n";
    let faults = load(text, Overrides::default()).unwrap_err();
    assert_eq!(faults.len(), 2, "{faults:?}");
    // No test is started with credentials.
    assert!(faults[0].contains(":2: ") && faults[0].contains("LoadCredential="), "{faults:?}");
    assert!(faults[1].contains(":3: ") && faults[1].contains("only ${CREDENTIALS_DIRECTORY} is"), "{faults:?}");
}

#[test]
fn any_number_of_faults_is_read_in_linear_time_and_told_in_few_lines() {
    let unknown = |count: usize| (0..count).map(|number| format!("odd{number} = 1\n")).collect::<String>();
    let many = |count: usize| -> String { (0..count).map(|_| "[[forward]]\nodd = 1\n").collect() };
    let wrong = |count: usize| (0..count).map(|number| format!("k{number} = \n")).collect::<String>();
    for (case, text, faults, last) in [
        ("ten", format!("[cache]\n{}size = \"1MiB\"\n", unknown(10)), 10, ":11: unknown key `odd9`; expected"),
        ("one more", format!("[cache]\n{}", unknown(11)), 11, ":12: 1 more unknown keys follow in this section"),
        ("very many", format!("{}[cache]\n{}", unknown(20_000), unknown(20_000)), 22, "19990 more unknown keys"),
        ("sections", many(2_000), 101, "there are more faults than these"),
        ("syntax", wrong(2_000), 101, "there are more faults than these"),
    ] {
        let begun = std::time::Instant::now();
        let found = load(&text, Overrides::default()).unwrap_err();
        assert_eq!(found.len(), faults, "{case}: {found:#?}");
        assert!(found.iter().any(|fault| fault.contains(last)), "{case}: {found:#?}");
        // In a debug build; it took hours when each fault had the whole read again.
        assert!(begun.elapsed().as_secs() < 20, "{case}: {:?}", begun.elapsed());
    }
    // An unknown key may look like a message.
    let found = load("\"a`, expected `size\" = 1\nb = 1\n", Overrides::default()).unwrap_err();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("unknown key `a`; expected `size`, expected one of"), "{found:?}");
}
