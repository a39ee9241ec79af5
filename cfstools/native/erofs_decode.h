/* What the two halves of the image reader share: erofs_decode.c walks the inodes, erofs_attributes.c reads xattrs. */
#ifndef CFSTOOLS_EROFS_DECODE_H
#define CFSTOOLS_EROFS_DECODE_H

#include "erofs_records.h"
#include "object_list.h"
#include "tree_model.h"

#define XATTRS_MAX 64 /* of one inode: more are rare */

/* A directory whose entries are being read. */
struct level {
    uint64_t nid, parent;
    struct dirents dirents;
    PyObject *entries; /* borrowed: its directory is in the tree; NULL if there is none */
    int dots;          /* 1: "." was found, 2: ".." was */
};

struct reader {
    struct disk disk;
    struct model model;
    struct numbers numbers;
    PyObject *no_xattrs, *freeze;  /* borrowed */
    PyObject *leave;               /* borrowed; called with the entries of each finished directory, or NULL */
    PyObject *mappings, *linked;   /* mappings by their pairs; inodes with several names by nid */
    PyObject *keys, *shared_pairs; /* interned keys; pairs of the shared table by their place */
    uint8_t *seen, *seen_shared;   /* a bit for each slot, and for each place in the shared table */
    uint64_t left, shared_left;    /* bytes that inodes, and shared xattrs, may still take up */
    unsigned algorithm;            /* 0 until there is a digest */
    unsigned long long hiding, hard_links, shared, references, entries;
    LIST(struct level) levels;
    int packs;          /* no tree is made, only the list of its objects */
    struct needs needs; /* then */
};

/* The xattrs of an inode and what they mean. */
struct meaning {
    struct xattr xattrs[XATTRS_MAX];
    size_t count, inlined;       /* the first ones are stored with the inode */
    uint32_t places[XATTRS_MAX]; /* of the shared ones in their table */
    const struct xattr *redirect, *metacopy;
    int is_whiteout;
    PyObject *kept; /* the mapping for the tree, a new reference */
};

/* Sets a bit; whether it was set before. */
int set_bit(uint8_t *bits, uint64_t number);

/* erofs_attributes.c */
enum outcome decode_xattrs(struct reader *r, const struct disk_inode *inode, struct meaning *meaning);
enum outcome decode_external(struct reader *r, const struct meaning *meaning, PyObject **out);
/* Adds external contents to the list of objects instead. */
enum outcome decode_need(struct reader *r, const struct meaning *meaning, uint64_t size);

#endif
