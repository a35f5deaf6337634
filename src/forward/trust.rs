//! Whose word is taken for it that an encrypted upstream is who it says.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{
        CertificateDer,
        pem::{self, PemObject},
    },
};

/// The authorities that an upstream's certificate may come from. It must bear the upstream's name in any case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Trust {
    /// The public ones, as Mozilla lists them.
    #[default]
    Public,
    /// These, and no others.
    Only(Vec<CertificateDer<'static>>),
}

/// What is wrong with the file of a rule's authorities.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}; ca_file is the path of authorities' certificates in PEM format, readable for this user")]
pub struct CaFileError {
    file: PathBuf,
    problem: CaFileProblem,
}

#[derive(Debug, thiserror::Error)]
enum CaFileProblem {
    #[error(transparent)]
    Pem(#[from] pem::Error),
    #[error(transparent)]
    Certificate(#[from] rustls::Error),
}

impl Trust {
    /// Those in the file, if there is one, else the public ones.
    pub fn read(ca_file: Option<&Path>) -> Result<Self, CaFileError> {
        let Some(file) = ca_file else { return Ok(Self::Public) };
        read_authorities(file).map(Self::Only).map_err(|problem| CaFileError { file: file.to_owned(), problem })
    }

    /// The settings of TLS for connections. Sessions are resumed between those that share them.
    pub fn client_config(&self) -> Result<ClientConfig, rustls::Error> {
        let mut roots = RootCertStore::empty();
        match self {
            Self::Public => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Self::Only(authorities) => authorities.iter().try_for_each(|authority| roots.add(authority.clone()))?,
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        Ok(config.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth())
    }
}

fn read_authorities(file: &Path) -> Result<Vec<CertificateDer<'static>>, CaFileProblem> {
    let authorities: Vec<_> = CertificateDer::pem_file_iter(file)?.collect::<Result<_, _>>()?;
    if authorities.is_empty() {
        return Err(pem::Error::NoItemsFound.into());
    }
    Trust::Only(authorities.clone()).client_config()?;
    Ok(authorities)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        forward::{Config, Group},
        metrics::Metrics,
    };

    fn authority() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
    }

    #[test]
    fn faulty_files_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let broken = authority().replace("MII", "AII");
        for (text, is_good) in [(None, false), (Some(""), false), (Some(&*broken), false), (Some(&*authority()), true)]
        {
            let file = folder.path().join("authority.pem");
            text.inspect(|text| fs::write(&file, text).unwrap());
            let error = Trust::read(Some(&file)).err().map(|error| error.to_string());
            assert_eq!(error.is_none(), is_good, "{text:?}: {error:?}");
            assert!(
                error.is_none_or(|error| error.contains("authority.pem: ") && error.contains("; ca_file is the path"))
            );
        }
        assert_eq!(Trust::read(None).unwrap(), Trust::Public);
    }

    #[test]
    fn an_upstream_is_another_once_other_authorities_are_believed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, authority()).unwrap();
        let rule = format!("suffixes = ['.']\nupstreams = ['tls://192.0.2.1']\nca_file = {:?}", file.path());
        let rules = [toml::from_str::<Config>(&rule).unwrap().rule().unwrap()];
        let build = |running: &[_]| Group::build_all(&rules, running, &Metrics::new()).unwrap();
        let running = build(&[]);
        assert!(Arc::ptr_eq(&running[0].upstreams()[0], &build(&running)[0].upstreams()[0]));
        fs::write(&file, authority()).unwrap();
        assert!(!Arc::ptr_eq(&running[0].upstreams()[0], &build(&running)[0].upstreams()[0]));
    }
}
