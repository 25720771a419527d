//! `X-Robots-Tag`: who does not want an image to be used.

use hyper::header::HeaderMap;

/// The directives that opt an image out.
const OPT_OUTS: [&str; 5] = ["noai", "noimageai", "noindex", "noimageindex", "none"];

/// Directives that carry a value after a colon; other names before a colon are user agents.
const VALUED: [&str; 4] = ["unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"];

/// The first directive that opts the image out for everybody or for `product` (lower case).
///
/// A header value is `[user agent:] directive, directive, ...`; a user agent holds for the
/// directives after it, up to the next one. `none` is short for `noindex, nofollow`.
pub(crate) fn opt_out(headers: &HeaderMap, product: &str) -> Option<String> {
    headers.get_all("x-robots-tag").iter().find_map(|value| {
        let value = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        let mut addressed = true;
        value.split(',').find_map(|part| {
            let mut directive = part.trim();
            if let Some((name, rest)) = directive.split_once(':') {
                let name = name.trim();
                // A value, or a date's hours and minutes.
                if VALUED.contains(&name) || name.contains(' ') {
                    return None;
                }
                addressed = name == product || name == "*";
                directive = rest.trim();
            }
            (addressed && OPT_OUTS.contains(&directive)).then(|| directive.to_owned())
        })
    })
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn opted_out(values: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("X-Robots-Tag", HeaderValue::from_str(value).unwrap());
        }
        opt_out(&headers, "stepdown").is_some()
    }

    #[test]
    fn directives_for_everybody_and_for_us_count() {
        for value in [
            "noai",
            "NoImageAI",
            "noindex",
            "noimageindex",
            "none",
            "nofollow, noai",
            "stepdown: noai",
            "Stepdown: nofollow, noindex",
            "*: noai",
            "googlebot: nofollow, stepdown: noai",
            "max-snippet: 20, noai",
            "unavailable_after: Wed, 25 Jun 2030 15:00:00 PST, noai",
        ] {
            assert!(opted_out(&[value]), "{value}");
        }
        assert!(opted_out(&["all", "noarchive", "noai"]), "any of several headers counts");
    }

    #[test]
    fn directives_for_others_and_other_directives_do_not() {
        for value in [
            "",
            "all",
            "nofollow, noarchive",
            "googlebot: noindex",
            "googlebot: nofollow, noindex",
            "stepdown: nofollow, otherbot: noai",
            "noaimage",
            "max-image-preview: none",
        ] {
            assert!(!opted_out(&[value]), "{value}");
        }
        assert!(!opted_out(&[]));
    }
}
