"""Operations on artifacts: putting one there, and getting one back; each returns the data."""

import hashlib
import json
from typing import Any

from loopback_wandb.kept import ENTITY, Artifact, Kept


class Artifacts(Kept):
    def _on_artifact_type(self, v: dict[str, Any]) -> Any:
        name = v["name"].partition(":")[0]
        types = [{"artifactType": {"name": one.type}} for one in self.artifacts if one.name == name]
        return {"project": {"artifact": types[-1] if types else None}}

    def _on_create_artifact(self, v: dict[str, Any]) -> Any:
        """One that is there with the same content is the same version."""
        asked = v["input"]
        name, digest = asked["artifactCollectionName"], asked["digest"]
        alike = [one for one in self.artifacts if (one.name, one.digest) == (name, digest)]
        metadata = json.loads(asked["metadata"] or "{}")
        one = (alike or [Artifact(f"a{len(self.artifacts)}", name, asked["artifactTypeName"], digest, metadata)])[0]
        if not alike:
            self.artifacts.append(one)
        if asked["runName"] not in one.runs:
            one.runs.append(asked["runName"])
        sequence = {"latestArtifact": {"id": one.id} if one.state == "COMMITTED" else None}
        return {"createArtifact": {"artifact": {"id": one.id, "state": one.state, "artifactSequence": sequence}}}

    def _on_create_artifact_manifest(self, v: dict[str, Any]) -> Any:
        id_ = f"{v['artifactID']}-manifest"
        file = {"id": id_, "uploadUrl": f"{self.url}/upload/{id_}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": id_, "file": file}}}

    def _on_update_artifact_manifest(self, v: dict[str, Any]) -> Any:
        id_ = v["artifactManifestID"]
        file = {"id": id_, "uploadUrl": f"{self.url}/upload/{id_}", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": id_, "file": file}}}

    def _on_create_artifact_files(self, v: dict[str, Any]) -> Any:
        edges = []
        for file in v["input"]["artifactFiles"]:
            path = f"{file['artifactID']}-files/{file['name']}"
            own = {"artifact": {"id": file["artifactID"]}, "uploadMultipartUrls": None, "uploadHeaders": []}
            edges.append({"node": {"storagePath": path, "uploadUrl": f"{self.url}/upload/{path}", **own}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_commit_artifact(self, v: dict[str, Any]) -> Any:
        one = next(one for one in self.artifacts if one.id == v["artifactID"])
        one.state, start = "COMMITTED", f"/upload/{one.id}-files/"
        one.files = {path.removeprefix(start): text for path, text in self._uploads.items() if path.startswith(start)}
        return {"commitArtifact": {"artifact": {"id": one.id, "digest": one.digest}}}

    def _on_artifact_membership_by_name(self, v: dict[str, Any]) -> Any:
        """Of each name there is one version here, which all its aliases mean."""
        found = self._named(v["name"].partition(":")[0])
        if found is None:
            return {"project": {"artifactCollectionMembership": None}}
        project = {"id": "p", "internalId": "1", "name": v["project"], "entity": {"name": ENTITY}}
        collection = {"__typename": "ArtifactSequence", "name": found.name, "project": project}
        times = {"createdAt": "2026-11-21T13:00:00Z", "updatedAt": None}
        more = {"ttlDurationSeconds": 0, "ttlIsInherited": True, "tags": [], "historyStep": None, "commitHash": None}
        sizes = {"size": sum(map(len, found.files.values())), "fileCount": len(found.files)}
        shown = {
            **{"__typename": "Artifact", "id": found.id, "artifactSequence": collection, "versionIndex": 0},
            **{"artifactType": {"name": found.type}, "description": None, "metadata": json.dumps(found.metadata)},
            **{"state": found.state, "digest": found.digest, "aliases": [], **times, **more, **sizes},
        }
        own = {"__typename": "ArtifactCollectionMembership", "id": f"m-{found.id}", "versionIndex": 0, "aliases": []}
        membership = {**own, **times, "artifactCollection": collection, "artifact": shown}
        return {"project": {"artifactCollectionMembership": membership}}

    def _on_fetch_artifact_manifest(self, v: dict[str, Any]) -> Any:
        url = f"{self.url}/upload/{v['id']}-manifest"
        return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}

    def _named(self, name: str) -> Artifact | None:
        return next((one for one in self.artifacts if one.name == name), None)

    def _content(self, path: str) -> bytes:
        """The file of an artifact whose MD5 the path asks for."""
        every = (content for one in self.artifacts for content in one.files.values())
        return next(content for content in every if hashlib.md5(content).hexdigest() in path)
