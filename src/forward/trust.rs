//! Which certificates of encrypted upstreams are believed.
//!
//! A certificate is believed if it comes from an authority that is trusted and bears the upstream's name. A certificate that
//! stands in a rule's `ca_file` itself is believed as it is, whoever issued it: that makes a self-signed one work, which webpki
//! would refuse as an authority that is used as a server (`openssl req -x509` writes CA:TRUE). It must be in its time, and
//! bear the upstream's name unless it has no names at all (subjectAltName, RFC 9525 §6.3): the file then says all there is to know.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    pki_types::{CertificateDer, ServerName, UnixTime, pem},
    server::ParsedCertificate,
};

use crate::{files, tls};

/// The authorities that an upstream's certificate may come from. It must bear the upstream's name in any case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Trust {
    /// The public ones, as Mozilla lists them.
    #[default]
    Public,
    /// These, and no others; servers may have one of them as their own.
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
        let verifier = Arc::new(self.verifier()?);
        Ok(tls::client().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
    }

    fn verifier(&self) -> Result<Verifier, rustls::Error> {
        let mut roots = RootCertStore::empty();
        let listed = match self {
            Self::Public => {
                roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
                Vec::new()
            }
            Self::Only(authorities) => {
                authorities.iter().try_for_each(|authority| roots.add(authority.clone()))?;
                authorities.clone()
            }
        };
        let authorities = WebPkiServerVerifier::builder_with_provider(roots.into(), tls::provider()).build();
        let authorities = authorities.map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Verifier { authorities, listed })
    }
}

/// Believes certificates from authorities, and those that are listed themselves.
#[derive(Debug)]
struct Verifier {
    authorities: Arc<WebPkiServerVerifier>,
    listed: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let is_listed = || self.listed.iter().any(|listed| listed == end_entity);
        match verified {
            Err(error) if (lacks_issuer_alone(&error) || has_no_names(&error)) && is_listed() => {
                match verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name) {
                    Err(error) if !has_no_names(&error) => Err(error),
                    _ => Ok(ServerCertVerified::assertion()),
                }
            }
            outcome => outcome,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// True if a certificate was refused for nothing but its issuer. webpki looks at its times before that.
fn lacks_issuer_alone(error: &rustls::Error) -> bool {
    match error {
        // The second where its issuer bears the name of a certificate that is listed.
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => true,
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(error))) => {
            error.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity)
        }
        _ => false,
    }
}

/// True if a certificate was refused because it bears no name at all.
fn has_no_names(error: &rustls::Error) -> bool {
    use CertificateError::NotValidForNameContext;
    matches!(error, rustls::Error::InvalidCertificate(NotValidForNameContext { presented, .. }) if presented.is_empty())
}

fn read_authorities(file: &Path) -> Result<Vec<CertificateDer<'static>>, CaFileProblem> {
    let authorities = files::read_certificates(file)?;
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

    /// A certificate that has signed itself, in the shapes of `openssl req -x509` and of others.
    fn self_signed(names: &[&str], is_ca: rcgen::IsCa, years: std::ops::Range<i32>) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.is_ca = is_ca;
        params.distinguished_name.push(rcgen::DnType::CommonName, "dns.example");
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn a_listed_certificate_is_believed_in_its_time_and_under_its_names() {
        let any = || rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let leaf = || rcgen::IsCa::ExplicitNoCa;
        let year_of =
            |year: u64| UnixTime::since_unix_epoch(std::time::Duration::from_secs((year - 1970) * 31_556_952));
        for is_ca in [any, leaf as fn() -> _, || rcgen::IsCa::NoCa] {
            let named = self_signed(&["dns.example", "192.0.2.1"], is_ca(), 2025..2035);
            let nameless = self_signed(&[], is_ca(), 2025..2035);
            let stranger = self_signed(&["dns.example"], is_ca(), 2025..2035);
            let expect = |shown: &CertificateDer<'_>, name: &'static str, year, expected: Result<(), &str>| {
                let trust = Trust::Only(vec![named.clone(), nameless.clone()]);
                let verifier = trust.verifier().unwrap();
                let name = ServerName::try_from(name).unwrap();
                let found = verifier.verify_server_cert(shown, &[], &name, &[], year_of(year)).map(drop);
                match (found, expected) {
                    (Ok(()), Ok(())) => {}
                    (Err(found), Err(expected)) => {
                        assert!(format!("{found:?}").contains(expected), "{found:?}, not {expected}");
                    }
                    (found, _) => panic!("{found:?}, not {expected:?}: {:?} {name:?} {year}", is_ca()),
                }
            };
            expect(&named, "dns.example", 2030, Ok(()));
            expect(&named, "192.0.2.1", 2030, Ok(()));
            expect(&named, "other.example", 2030, Err("NotValidForName"));
            expect(&named, "192.0.2.2", 2030, Err("NotValidForName"));
            expect(&named, "dns.example", 2036, Err("Expired"));
            expect(&named, "dns.example", 2024, Err("NotValidYet"));
            expect(&nameless, "dns.example", 2030, Ok(()));
            expect(&nameless, "192.0.2.9", 2030, Ok(()));
            expect(&nameless, "dns.example", 2036, Err("Expired"));
            expect(&stranger, "dns.example", 2030, Err(""));
        }
    }

    #[test]
    fn a_listed_certificate_need_not_be_self_signed() {
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::default();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = rcgen::CertifiedIssuer::self_signed(authority, authority_key).unwrap();
        let issue = || {
            let params = rcgen::CertificateParams::new(["dns.example".to_owned()]).unwrap();
            params.signed_by(&rcgen::KeyPair::generate().unwrap(), &authority).unwrap().der().clone()
        };
        let (listed, sibling) = (issue(), issue());
        let verifier = Trust::Only(vec![listed.clone()]).verifier().unwrap();
        let name = ServerName::try_from("dns.example").unwrap();
        let is_believed = |shown| verifier.verify_server_cert(shown, &[], &name, &[], UnixTime::now()).is_ok();
        assert!(is_believed(&listed) && !is_believed(&sibling));
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
