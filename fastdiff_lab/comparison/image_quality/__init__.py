"""FID, KID, CLIPScore and LPIPS with the user's own weight files (docs/quality.md)."""
