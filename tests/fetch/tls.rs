//! Fault 5: certificates that are not to be trusted.

use std::sync::Arc;

use fetch::FailureClass::Tls;
use fetch::{FetchConfig, Fetcher};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::server::ok;
use crate::{Names, config};

/// An authority of the test's own, and a certificate that it signed.
struct Signed {
    root: Vec<u8>,
    leaf: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

/// A certificate for `name`, valid between two years, signed by a new authority.
fn signed(name: &str, years: (i32, i32)) -> Signed {
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name.push(DnType::CommonName, "an authority for tests");
    let root_key = KeyPair::generate().unwrap();
    let root_certificate = root.self_signed(&root_key).unwrap();
    let mut leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
    leaf.not_before = date_time_ymd(years.0, 1, 1);
    leaf.not_after = date_time_ymd(years.1, 1, 1);
    let key = KeyPair::generate().unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
    Signed {
        root: root_certificate.der().to_vec(),
        leaf: leaf.der().clone(),
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}

/// Serves TLS with this certificate, on a port of 127.0.0.1.
async fn serve(signed: &Signed) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.leaf.clone()], signed.key.clone_key())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let _ = stream.write_all(&ok(b"over TLS")).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    port
}

/// Asks `right.example` of a server with this certificate, trusting `roots` beside the platform's.
async fn ask(signed: &Signed, roots: Vec<Vec<u8>>) -> Result<Vec<u8>, fetch::Failure> {
    let names = Names::new([("right.example", vec![vec![[127, 0, 0, 1]]])]);
    let config = FetchConfig { extra_roots: roots, ..config() };
    let url = format!("https://right.example:{}/", serve(signed).await);
    let outcome = Fetcher::with_lookup(config, names).unwrap().get(&url).await.unwrap();
    outcome.map(|fetched| fetched.body.to_vec())
}

#[tokio::test]
async fn a_good_certificate_of_a_trusted_authority_is_taken() {
    let good = signed("right.example", (2020, 2090));
    assert_eq!(ask(&good, vec![good.root.clone()]).await.unwrap(), b"over TLS");
}

#[tokio::test]
async fn an_expired_one_is_not() {
    let expired = signed("right.example", (2020, 2021));
    let failure = ask(&expired, vec![expired.root.clone()]).await.unwrap_err();
    assert!(failure.class == Tls && failure.detail.contains("xpired"), "{failure}");
}

#[tokio::test]
async fn nor_one_of_another_host() {
    let other = signed("wrong.example", (2020, 2090));
    let failure = ask(&other, vec![other.root.clone()]).await.unwrap_err();
    assert!(failure.class == Tls && failure.detail.contains("right.example"), "{failure}");
}

#[tokio::test]
async fn nor_one_of_an_unknown_authority() {
    let unknown = signed("right.example", (2020, 2090));
    let failure = ask(&unknown, Vec::new()).await.unwrap_err();
    assert!(failure.class == Tls && failure.detail.contains("UnknownIssuer"), "{failure}");
}
