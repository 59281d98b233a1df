"""Diffusers' insides: modules patched, denoisers split, runs and calls told apart; no other folder knows them."""
