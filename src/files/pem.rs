//! Certificates and keys in files (PEM, RFC 7468).

use std::path::Path;

use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{Error, PemObject},
};

use super::read::{SMALL, read};

/// Reads the certificates of a file, in its order. A file without any is an error.
pub fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let (text, _) = read(file, SMALL).map_err(Error::Io)?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>()?;
    if certificates.is_empty() { Err(Error::NoItemsFound) } else { Ok(certificates) }
}

/// Reads the first private key of a file.
pub fn read_private_key(file: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let (text, _) = read(file, SMALL).map_err(Error::Io)?;
    PrivateKeyDer::from_pem_slice(&text)
}
