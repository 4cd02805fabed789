"""Operations on a whole repository. `expire` lets snapshots go by the rules of retention, `fsck` verifies it all."""
