"""Operations on a whole repository. `fsck` verifies it."""
