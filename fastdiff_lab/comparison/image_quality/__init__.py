"""FID, KID, CLIPScore and LPIPS with weight files of the user's own; docs/quality.md says which."""
