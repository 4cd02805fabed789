"""The persisted formats: pure functions between bytes and frozen values. No I/O, no clock.

Lowest first: `envelope` (sections, checksums, compression) and `columns` (integer columns) are the alphabet;
`refs` (where a blob is), `pack`, `manifest`, `page`, `node`, `snapshot` and `record` are the words. Every decoder
raises `FormatError` and nothing else on bytes that it can't accept, and bounds every length before it allocates.
docs/format.md describes them byte by byte.
"""
