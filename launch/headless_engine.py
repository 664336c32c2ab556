"""The football engine without drawing: gfootball's published sources, unpacked and changed by the edits below.

    python launch/headless_engine.py SDIST FOLDER    unpack SDIST into FOLDER and apply the edits
    python launch/headless_engine.py --version       the version that the changed package has

Most of the published engine's time is not the game: it poses every player for drawing a hundred times a second, parses
the text of animations while it searches them, turns the whole match around for each team's turn, and builds all of it
anew at every reset. The edits leave that work out or do it once. Episodes stay bit for bit those of the published engine
(tests/integration/test_grf_engine.py). Drawing is lost: the engine raises RuntimeError where it is asked for.

An edit names a file, a fragment of it that must occur exactly once, and what stands there afterwards; `{}` is the fragment
itself. The script stops where the sources are not those that the edits were written for.
"""

import argparse
import hashlib
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

PUBLISHED = "2.10.2"
VERSION = f"{PUBLISHED}+headless.2"  # count up with every change of the edits: a kept wheel is used by its version
SHA256 = "1b0fdcfa78b7fadc3730585ee7f0f412ba825c27e422b2b85ea0cf7ba57800b6"
ENGINE = Path("third_party", "gfootball_engine")


class Edit(NamedTuple):
    """One change of one file.

    Args:
        file: path inside `ENGINE`.
        fragment: text that occurs exactly once in the file.
        replacement: what stands there afterwards; `{}` is the fragment.
    """

    file: str
    fragment: str
    replacement: str


ANIMATION_H, ANIMATION = "src/utils/animation.hpp", "src/utils/animation.cpp"
COLLECTION_H, COLLECTION = (
    "src/onthepitch/player/humanoid/animcollection.hpp",
    "src/onthepitch/player/humanoid/animcollection.cpp",
)
BASE_H, BASE = "src/onthepitch/player/humanoid/humanoidbase.hpp", "src/onthepitch/player/humanoid/humanoidbase.cpp"
HUMANOID = "src/onthepitch/player/humanoid/humanoid.cpp"
MATCH, BALL_H, BALL = "src/onthepitch/match.cpp", "src/onthepitch/ball.hpp", "src/onthepitch/ball.cpp"
IMAGE_H, IMAGE = "src/onthepitch/AIsupport/mentalimage.hpp", "src/onthepitch/AIsupport/mentalimage.cpp"
GAME, LOG, PYTHON = "src/game_env.cpp", "src/base/log.cpp", "ai.cpp"

# What animations say of themselves as text is read once, when it is set, and not for every candidate of every choice.
TEXT = (
    Edit(ANIMATION_H, '#include "../utils/xmlloader.hpp"', '{}\n#include "../base/utils.hpp"'),
    Edit(
        ANIMATION_H,
        "      values[key] = value;",
        """{}
      if (key == "priority") priority = fabs(atof(value.c_str()));
      else if (key == "animdifficultyfactor") difficulty = atof(value.c_str());
      else if (key == "incomingballdirection_maxdeviation") incoming_deviation = atof(value.c_str());
      else if (key == "outgoingballdirection_maxdeviation") outgoing_deviation = atof(value.c_str());
      else if (key == "touchframe") touch_frame = atoi(value.c_str());
      else if (key == "steps" && !value.empty()) steps = atoi(value.c_str());
      else if (key == "triptype") trip_type = int(round(atof(value.c_str())));
      else if (key == "outgoing_retain_state") retains_ball = !value.empty();
      else if (key == "balldirection" && !value.empty()) ball_direction = GetVectorFromString(value);
      else if (key == "incomingballdirection" && !value.empty()) incoming_ball_direction = GetVectorFromString(value);
      else if (key == "bumpdirection" && !value.empty()) bump_direction = GetVectorFromString(value);""",
    ),
    Edit(
        ANIMATION_H,
        "    inline float idlelevel() const",
        """    double priority = 0, difficulty = 0, incoming_deviation = 0, outgoing_deviation = 0;
    int touch_frame = 0, steps = 1, trip_type = 0;
    bool retains_ball = false;
    Vector3 ball_direction, incoming_ball_direction, bump_direction;
{}""",
    ),
    Edit(ANIMATION, 'std::string foot = GetVariable("steps");', "const std::string foot;"),
    Edit(ANIMATION, "int steps = 1;", "int steps = variableCache.steps;"),
    Edit(
        COLLECTION,
        'GetVectorFromString(animations[i]->GetVariable("incomingballdirection"))',
        "animations[i]->GetVariableCache().incoming_ball_direction",
    ),
    Edit(
        COLLECTION,
        'atof(animations[i]->GetVariable("incomingballdirection_maxdeviation").c_str())',
        "animations[i]->GetVariableCache().incoming_deviation",
    ),
    Edit(
        COLLECTION,
        'GetVectorFromString(animations[i]->GetVariable("balldirection"))',
        "animations[i]->GetVariableCache().ball_direction",
    ),
    Edit(
        COLLECTION,
        'atof(animations[i]->GetVariable("outgoingballdirection_maxdeviation").c_str())',
        "animations[i]->GetVariableCache().outgoing_deviation",
    ),
    Edit(
        COLLECTION,
        'int(round(atof(animations[i]->GetVariable("triptype").c_str())))',
        "animations[i]->GetVariableCache().trip_type",
    ),
    Edit(
        COLLECTION,
        '(animations[i]->GetVariable("outgoing_retain_state") == "" &&',
        "(!animations[i]->GetVariableCache().retains_ball &&",
    ),
    Edit(
        COLLECTION,
        '(animations[i]->GetVariable("outgoing_retain_state") != "" &&',
        "(animations[i]->GetVariableCache().retains_ball &&",
    ),
    Edit(
        BASE,
        'int animTouchFrame = atoi(anim->GetVariable("touchframe").c_str());',
        "int animTouchFrame = anim->GetVariableCache().touch_frame;",
    ),
    Edit(
        BASE,
        'float difficultyFactor = atof(anim->GetVariable("animdifficultyfactor").c_str());',
        "float difficultyFactor = anim->GetVariableCache().difficulty;",
    ),
    Edit(
        HUMANOID,
        'int defaultTouchFrame = atoi(anim->GetVariable("touchframe").c_str());',
        "int defaultTouchFrame = anim->GetVariableCache().touch_frame;",
    ),
    Edit(
        HUMANOID,
        'float animDiff = atof(currentAnim.anim->GetVariable("animdifficultyfactor").c_str());',
        "float animDiff = currentAnim.anim->GetVariableCache().difficulty;",
    ),
    Edit(
        BASE,
        'float rating1 = -GetVectorFromString(anims->GetAnim(animIndex1)->GetVariable("bumpdirection"))',
        "float rating1 = -anims->GetAnim(animIndex1)->GetVariableCache().bump_direction",
    ),
    Edit(
        BASE,
        'float rating2 = -GetVectorFromString(anims->GetAnim(animIndex2)->GetVariable("bumpdirection"))',
        "float rating2 = -anims->GetAnim(animIndex2)->GetVariableCache().bump_direction",
    ),
    Edit(
        BASE,
        'fabs(atof(anims->GetAnim(animIndex1)->GetVariable("priority").c_str()))',
        "anims->GetAnim(animIndex1)->GetVariableCache().priority",
    ),
    Edit(
        BASE,
        'fabs(atof(anims->GetAnim(animIndex2)->GetVariable("priority").c_str()))',
        "anims->GetAnim(animIndex2)->GetVariableCache().priority",
    ),
)

# Key frames are interpolated once per animation, and a pose is smoothed only in the frames in which smoothing changes it.
POSES = (
    Edit(
        ANIMATION_H,
        "    KeyFrames animation; // frame, angles",
        """{}
    std::vector<KeyFrame> interpolated;  // at every frame
    std::vector<KeyFrame> between;  // halfway from every frame to the next""",
    ),
    Edit(
        ANIMATION_H,
        "      void ConvertToStartFacingForwardIfIdle();",
        """      void Prepare();
      void ReadInterpolated(NodeAnimation *node, int frame, Quaternion &orientation, Vector3 &position) const;
      std::vector<Vector3> positions;
{}""",
    ),
    Edit(
        ANIMATION,
        "  cache_translation_dirty = true;",
        """  for (auto node : nodeAnimations) {
    node->interpolated.clear();
    node->between.clear();
  }
{}""",
    ),
    Edit(
        ANIMATION,
        "GetInterpolatedValues(nodeAnimations[i]->animation, frame, orientation, position);",
        "ReadInterpolated(nodeAnimations[i], frame, orientation, position);",
    ),
    Edit(
        ANIMATION,
        "  void Animation::SetKeyFrame(BodyPart nodeName, int frame,",
        """  // Afterwards nothing of an animation changes, so that matches in several threads may read it.
  void Animation::Prepare() {
    GetTranslation();
    GetIncomingMovement();
    GetIncomingVelocity();
    GetOutgoingMovement();
    GetOutgoingVelocity();
    GetOutgoingAngle();
    GetOutgoingDirection();
    GetIncomingBodyAngle();
    GetIncomingBodyDirection();
    GetOutgoingBodyAngle();
    GetOutgoingBodyDirection();
    for (auto node : nodeAnimations) {
      node->interpolated.resize(frameCount + 1);
      for (int frame = 0; frame <= frameCount; frame++) {
        KeyFrame &key = node->interpolated[frame];
        GetInterpolatedValues(node->animation, frame, key.orientation, key.position);
      }
      node->between.resize(frameCount);
      for (int frame = 0; frame < frameCount; frame++) {
        Quaternion before = node->interpolated[frame].orientation;
        const Quaternion after = node->interpolated[frame + 1].orientation;
        before.MakeSameNeighborhood(after);
        node->between[frame].orientation = before.GetLerped(0.5f, after).GetNormalized();
        node->between[frame].position =
            node->interpolated[frame].position * (1.0f - 0.5f) + node->interpolated[frame + 1].position * 0.5f;
      }
    }
  }

  void Animation::ReadInterpolated(NodeAnimation *node, int frame, Quaternion &orientation, Vector3 &position) const {
    if (frame < 0 || frame >= int(node->interpolated.size())) {
      return GetInterpolatedValues(node->animation, frame, orientation, position);
    }
    orientation = node->interpolated[frame].orientation;
    position = node->interpolated[frame].position;
  }

{}""",
    ),
    Edit(
        ANIMATION,
        "      GetInterpolatedValues(nodeAnimation->animation, frame, orientation_pre , position_pre);",
        """      if (timeOffset_ms == -1 && frame >= 0 && frame < int(nodeAnimation->between.size())) {
        orientation = nodeAnimation->between[frame].orientation;
        position = nodeAnimation->between[frame].position;
      } else {
{}""",
    ),
    Edit(
        ANIMATION,
        "      position = position_pre * (1.0f - bias) + position_post * bias;",
        "{}\n      }",
    ),
    Edit(
        ANIMATION,
        "node < movementHistory->size(); node++",
        "node < movementHistory->size() && !movementHistoryEntry; node++",
    ),
    Edit(
        ANIMATION,
        "            std::pow(curve(1.0f - NormalizedClamp(frame, 0, 8), 1.0f), 0.5f);",
        "            frame >= 8 ? 0.0f :\n{}",
    ),
    # Smoothing limits the turn of a joint to no less than 0.07 radians a frame, and 0.9995 is the cosine of half of 0.063.
    Edit(
        ANIMATION,
        "std::acos(clamp(dot, -1.0f, 1.0f))",
        "(dot > 0.9995f ? 0.0f : {})",
    ),
    # The sine of the arc cosine over the root is 1 up to 1e-15, which no float can show.
    Edit(
        "src/base/math/quaternion.cpp",
        "    // Calculate temporary values.",
        """    if (bias == 0.0f) {
      return Quaternion(elements[0] + qb.elements[0] * 0.0f, elements[1] + qb.elements[1] * 0.0f,
                        elements[2] + qb.elements[2] * 0.0f, elements[3] + qb.elements[3] * 0.0f);
    }
{}""",
    ),
)

# All matches of a process read the same animations: they are loaded once, by `start_game`, which holds Python's lock. What
# is written while a match plays, without that lock, belongs to its thread.
SHARED = (
    Edit(BASE, "anims->GetAnim(anim)->order_float = GetMovementSimilarity", "Order(anim) = GetMovementSimilarity"),
    Edit(
        BASE, "anims->GetAnim(anim)->order_float = DirectionSimilarityRating", "Order(anim) = DirectionSimilarityRating"
    ),
    Edit(BASE, "anims->GetAnim(animIndex1)->order_float", "Order(animIndex1)"),
    Edit(BASE, "anims->GetAnim(animIndex2)->order_float", "Order(animIndex2)"),
    Edit(
        BASE,
        "constexpr float initialReQueueDelayFrames = 32;",
        """{}

static float &Order(int animation) {
  static thread_local std::vector<float> orders;
  if (animation >= int(orders.size())) orders.resize(animation + 1);
  return orders[animation];
}""",
    ),
    Edit(
        MATCH,
        "  return GetContext().animPositionCache.find(anim)->second;",
        "  return anim->positions;",
    ),
    Edit(
        MATCH,
        "      GetContext().animPositionCache.insert(std::pair < Animation*, std::vector<Vector3> >(someAnim, positions));",
        "      someAnim->positions = positions;\n      someAnim->Prepare();",
    ),
    Edit(
        MATCH,
        "  auto& anims = GetContext().anims;",
        """{}
  static auto &loaded = *new boost::shared_ptr<AnimCollection>();
  if (!anims) anims = loaded;""",
    ),
    Edit(MATCH, "    GetVertexColors(GetContext().colorCoords);", "    loaded = anims;"),
    Edit(MATCH, "      a->DirtyCache();", ""),
)

# A turn of the match is noted, and carried out where the turned values are read. Turning twice changes nothing, to the bit.
TURNS = (
    Edit(
        BASE_H,
        "    bool mirrored = false;",
        """{}
    void SyncNode();
    bool nodeTurned = false;  // humanoidNode is still to be turned
    bool nodeMoved = false;  // what is derived from humanoidNode is out of date""",
    ),
    Edit(
        BASE_H,
        "GetHumanoidNode() { DO_VALIDATION; return",
        "GetHumanoidNode() { SyncNode(); return",
    ),
    Edit(BASE_H, "GetGeomPosition() { DO_VALIDATION; return", "GetGeomPosition() { SyncNode(); return"),
    Edit(BASE_H, "&GetNodeMap() { DO_VALIDATION; return", "&GetNodeMap() { SyncNode(); return"),
    Edit(
        BASE,
        "void HumanoidBase::Mirror() {",
        """void HumanoidBase::SyncNode() {
  if (!nodeTurned) {
    if (nodeMoved) humanoidNode->RecursiveUpdateSpatialData(e_SpatialDataType_Both);
    nodeMoved = false;
    return;
  }
  nodeTurned = nodeMoved = false;
  mirrored = !mirrored;  // as it was before the turn""",
    ),
    Edit(
        BASE,
        "  mirrored = !mirrored;\n  startPos.Mirror();",
        """  mirrored = !mirrored;
}

void HumanoidBase::Mirror() {
  nodeTurned = !nodeTurned;
  nodeMoved = true;
{}""",
    ),
    Edit(BASE, "void HumanoidBase::UpdateFullbodyNodes(bool mirror) {", "{}\n  SyncNode();"),
    Edit(
        BASE,
        "  animApplyBuffer.anim->Apply(nodeMap, animApplyBuffer.frameNum, -1,",
        "  if (nodeTurned) SyncNode();\n{}",
    ),
    Edit(BASE, "  humanoidNode->RecursiveUpdateSpatialData(e_SpatialDataType_Both);\n}", "  nodeMoved = true;\n}"),
    Edit(BASE, "  humanoidNode->SetPosition(startPos, false);", "  SyncNode();\n{}"),
    Edit(BASE, "  humanoidNode->ProcessState(state);", "  SyncNode();\n{}"),
    Edit(HUMANOID, "      // find body part the ball is stuck to (superglue powers)", "      SyncNode();"),
    Edit(
        BALL_H,
        "    bool ballTouchesNet = false;",
        """{}
    void SyncPredictions();
    bool turned = false;  // predictions and history are still to be turned
    mutable std::vector<Vector3> sums[2];  // of the history from its end on, as it is and turned
    mutable std::list<Vector3>::const_reverse_iterator summed[2];""",
    ),
    Edit(
        BALL_H,
        "      return predictions[index];",
        """      Vector3 prediction = predictions[index];
      if (turned) prediction.Mirror();
      return prediction;""",
    ),
    Edit(
        BALL,
        "  momentum.Mirror();",
        """{}
  positionBuffer.Mirror();
  turned = !turned;
}

void Ball::SyncPredictions() {
  sums[0].clear();
  sums[1].clear();
  if (!turned) return;
  turned = false;""",
    ),
    Edit(BALL, "  }\n  positionBuffer.Mirror();", "  }"),
    Edit(BALL, "    target[x] = predictions[x];", "{}\n    if (turned) target[x].Mirror();"),
    Edit(BALL, "  // fill predictions", "  SyncPredictions();"),
    Edit(
        BALL,
        "  std::list<Vector3>::const_reverse_iterator iter = ballPosHistory.rbegin();",
        """  std::vector<Vector3> &known = sums[turned];
  if (known.empty()) summed[turned] = ballPosHistory.rbegin();
  const unsigned int wanted = duration_ms / 10 + 1;
  while (known.size() < wanted && summed[turned] != ballPosHistory.rend()) {
    Vector3 position = *summed[turned]++;
    if (turned) position.Mirror();
    Vector3 sum = known.empty() ? Vector3(0) : known.back();
    sum += position;
    known.push_back(sum);
  }
  if (!known.empty()) {
    const unsigned int count = std::min<size_t>(wanted, known.size());
    Vector3 average = known[count - 1];
    average /= count;
    return average;
  }
{}""",
    ),
    Edit(BALL, "void Ball::ResetSituation(const Vector3 &focusPos) {", "{}\n  SyncPredictions();"),
    Edit(BALL, "void Ball::ProcessState(EnvState *state) {", "{}\n  SyncPredictions();"),
    Edit(
        IMAGE_H,
        "  bool ballPredictions_mirrored = false;",
        """{}
  void Sync(bool ball);
  bool ballTurned = false;  // ballPredictions are still to be turned
  bool teamTurned[2] = {false, false};  // so are the players of these teams""",
    ),
    Edit(
        IMAGE,
        "void MentalImage::Mirror(bool team_0, bool team_1, bool ball) {",
        """{}
  teamTurned[0] ^= team_0;
  teamTurned[1] ^= team_1;
  ballTurned ^= ball;
  ballPredictions_mirrored ^= ball;
}

void MentalImage::Sync(bool ball) {
  const bool team_0 = teamTurned[0], team_1 = teamTurned[1];
  ball = ball && ballTurned;
  if (!team_0 && !team_1 && !ball) return;
  teamTurned[0] = teamTurned[1] = false;
  ballTurned ^= ball;
  ballPredictions_mirrored ^= ball;  // was set with the turn, and is set again below""",
    ),
    Edit(
        IMAGE,
        "void MentalImage::ProcessState(EnvState* state, Match* match) {",
        "{}\n  Sync(true);",
    ),
    Edit(
        IMAGE,
        "PlayerImage MentalImage::GetPlayerImage(PlayerBase* p) const {",
        "{}\n  const_cast<MentalImage*>(this)->Sync(false);",
    ),
    Edit(
        IMAGE,
        "std::vector<PlayerImagePosition> MentalImage::GetTeamPlayerImages(int teamID) const {",
        "{}\n  const_cast<MentalImage*>(this)->Sync(false);",
    ),
    Edit(IMAGE, "  match->GetBall()->GetPredictionArray(ballPredictions);", "{}\n  ballTurned = false;"),
    Edit(IMAGE, "  Vector3 mentalResult = ballPredictions[index];", "{}\n  if (ballTurned) mentalResult.Mirror();"),
)

# A choice of animations looks at those of the right kind only.
CHOICE = (
    Edit(COLLECTION_H, "    std::vector<Quadrant> quadrants;", "{}\n    std::vector<int> byFunction[32];"),
    Edit(
        COLLECTION,
        "  animations.push_back(animation);",
        """  for (int function = 0; function < 32; function++) {
    if (_CheckFunctionType(animation->GetAnimType(), e_FunctionType(function))) {
      byFunction[function].push_back(animations.size());
    }
  }
{}""",
    ),
    Edit(
        COLLECTION,
        "  int animSize = animations.size();",
        """  const std::vector<int> *candidates = query.byFunctionType ? &byFunction[query.functionType] : nullptr;
  const int animSize = candidates ? candidates->size() : animations.size();
  const Vector3 queryFence = query.lookAtVecRel.GetRotated2D(pi);
  const radian queryToFence = queryFence.GetAngle2D(query.incomingBodyDirection);
  const auto queryBody = fabs(FixAngle(query.incomingBodyDirection.GetAngle2D()));""",
    ),
    Edit(
        COLLECTION,
        "  for (int i = 0; i < animSize; i++) {",
        """  for (int n = 0; n < animSize; n++) {
    const int i = candidates ? (*candidates)[n] : n;
    // What is quickly told is told first; the order of the conditions does not matter.
    const VariableCache &variables = animations[i]->GetVariableCache();
    if (variables.lastditch() && !query.allowLastDitchAnims) continue;
    if (variables.specialvar1() != query.properties.specialvar1()) continue;
    if (variables.specialvar2() != query.properties.specialvar2()) continue;
    if (variables.incoming_special_state() != query.properties.incoming_special_state()) continue;""",
    ),
    Edit(
        COLLECTION,
        "radian GetAngle(int directionID) {",
        """// Of every animation in order: where its player looks and turns, which no choice changes.
struct Directions {
  Vector3 outgoingLook, outgoingBody;
  radian turn;
  float incomingBody;
};
static std::vector<Directions> directions;

{}""",
    ),
    Edit(
        COLLECTION,
        "  for (int function = 0; function < 32; function++) {",
        """  Directions entry;
  entry.outgoingLook = animation->GetOutgoingDirection().GetRotated2D(animation->GetOutgoingBodyAngle());
  entry.outgoingBody = Vector3(0, -1, 0).GetRotated2D(animation->GetOutgoingBodyAngle() + animation->GetOutgoingAngle());
  entry.turn = entry.outgoingLook.GetAngle2D(animation->GetIncomingBodyDirection());
  entry.incomingBody = fabs(FixAngle(animation->GetIncomingBodyDirection().GetAngle2D()));
  directions.push_back(entry);
{}""",
    ),
    Edit(
        COLLECTION,
        "animations[i]->GetOutgoingDirection().GetRotated2D(animations[i]->GetOutgoingBodyAngle())",
        "directions[i].outgoingLook",
    ),
    Edit(COLLECTION, "animOutgoingDirection.GetAngle2D(animIncomingDirection)", "directions[i].turn"),
    Edit(COLLECTION, "fencedDirection = query.lookAtVecRel.GetRotated2D(pi)", "fencedDirection = queryFence"),
    Edit(COLLECTION, "fencedDirection.GetAngle2D(query.incomingBodyDirection)", "queryToFence"),
    Edit(
        COLLECTION,
        "\n        if (fabs(FixAngle(animations[i]->GetIncomingBodyDirection().GetAngle2D())) > "
        "fabs(FixAngle(query.incomingBodyDirection.GetAngle2D()))",
        "\n        if (directions[i].incomingBody > queryBody",
    ),
    Edit(
        COLLECTION,
        "Vector3(0, -1, 0).GetRotated2D(animations[i]->GetOutgoingBodyAngle() + animations[i]->GetOutgoingAngle())",
        "directions[i].outgoingBody",
    ),
    Edit(
        BASE,
        "  Vector3 outgoingDirection = ForceIntoPreferredDirectionVec(anims->GetAnim(animIndex)->GetOutgoingDirection());",
        """  static thread_local std::vector<std::pair<bool, Vector3>> preferred;
  if (preferred.empty()) preferred.resize(anims->GetAnimations().size());
  if (!preferred[animIndex].first) {
    preferred[animIndex].second = ForceIntoPreferredDirectionVec(anims->GetAnim(animIndex)->GetOutgoingDirection());
    preferred[animIndex].first = true;
  }
  const Vector3 &outgoingDirection = preferred[animIndex].second;""",
    ),
)

# The camera moves as before, since saved states hold it; the weights of its smoothing are computed once.
CAMERA = (
    Edit(
        MATCH,
        "    float weight = std::sin((index",
        """    static thread_local std::vector<std::pair<bool, float>> weights((camPosSize + 1) * (camPosSize + 1));
    auto &entry = weights[camPos.size() * (camPosSize + 1) + index];
    float &weight = entry.second;
    if (!entry.first) weight = std::sin((index""",
    ),
    Edit(MATCH, "    weight *= std::pow(", "    if (!entry.first) weight *= std::pow("),
    Edit(MATCH, "    count += weight;", "    entry.first = true;\n{}"),
)

# A match is built without the bodies and pictures that only a drawing shows.
RESETS = (
    Edit(BASE, "  PrepareFullbodyModel(colorCoords);", ""),
    Edit(
        "src/utils/gui2/widgets/image.cpp",
        "void Gui2Image::LoadImage(const std::string &filename) {",
        "{}\n  if (!GetGameConfig().render) return;",
    ),
    Edit("src/loaders/imageloader.cpp", '#include "../base/log.hpp"', '{}\n#include "../base/sdl_surface.hpp"'),
    Edit("src/loaders/imageloader.cpp", "IMG_LoadBmp(filename.c_str());", "CreateSDLSurface(1, 1);"),
    Edit(
        "src/scene/objects/geometry.cpp",
        """(GetContext().geometry_manager.FetchCopy(
        srcName, srcName + postfix, alreadyThere));""",
        "src.geometryData;",
    ),
    Edit("src/utils/gui2/windowmanager.cpp", "CreateSDLSurface(contextW, contextH);", "CreateSDLSurface(1, 1);"),
    Edit("src/utils/gui2/windowmanager.cpp", "CreateSDLSurface(width, height);", "CreateSDLSurface(1, 1);"),
)

# What cannot be drawn any more is refused, while Python's lock is held.
REFUSAL = """throw std::runtime_error("this football engine was built without drawing. Leave out render");"""
DRAWING = (
    Edit(GAME, "  assert(context == nullptr);", f"{{}}\n  if (game_config.render) {REFUSAL}"),
    Edit(PYTHON, "  void step_python() {", f"{{}}\n    if (GameEnv::game_config.render) {REFUSAL}"),
    Edit(PYTHON, "  void render_python(bool swap_buffer) {", f"{{}}\n    {REFUSAL}"),
    Edit(
        PYTHON,
        "  void reset_python(ScenarioConfig& game_config, bool init_animation) {",
        f"{{}}\n    if (GameEnv::game_config.render) {REFUSAL}",
    ),
)

# A step of this package's environment is one call, and the other threads of Python go on meanwhile.
LOOP = (
    Edit(
        PYTHON,
        "class GameEnv_Python : public GameEnv {",
        """// The memory of a NumPy array, while it is held.
struct ArrayView {
  explicit ArrayView(PyObject* array) {
    if (PyObject_GetBuffer(array, &buffer, PyBUF_WRITABLE)) throw_error_already_set();
  }
  ~ArrayView() { PyBuffer_Release(&buffer); }
  Py_buffer buffer;
};

// Python's lock is free while this is held, and taken again also after an exception.
struct WithoutLock {
  ~WithoutLock() { PyEval_RestoreThread(state); }
  PyThreadState* state = PyEval_SaveThread();
};

{}""",
    ),
    Edit(
        PYTHON,
        "  void render_python(bool swap_buffer) {",
        f"""  // Steps `count` times, and on until the ball is in play; returns whether it is after `limit` steps more. Writes
  // `obs`, float32 [agents, 115], as simple115v2 has it, and `facts`, int32 [6 + agents]: owner of the ball (-1 nobody,
  // 0 left, 1 right), its player, goals of the left and the right team, mode, clock, and every agent's player.
  bool advance_python(int count, int limit, PyObject* obs, PyObject* facts) {{
    if (GameEnv::game_config.render) {REFUSAL}
    constexpr int columns = 115, active = 97, mode = 108, fixed = 6;
    ArrayView rows(obs), numbers(facts);
    const int agents = rows.buffer.len / (columns * sizeof(float));
    if (agents < 1 || rows.buffer.len != Py_ssize_t(agents * columns * sizeof(float)) ||
        numbers.buffer.len != Py_ssize_t((fixed + agents) * sizeof(int))) {{
      throw std::invalid_argument("advance writes obs [agents, 115] float32 and facts [6 + agents] int32");
    }}
    ContextHolder c(this);
    WithoutLock unlocked;
    while (count-- > 0) step();
    SharedInfo info = get_info();
    for (; !info.is_in_play && limit > 0; limit--) {{
      step();
      info = get_info();
    }}
    if (!info.is_in_play) return false;
    float* const row = static_cast<float*>(rows.buffer.buf);
    int column = 0;
    auto write = [&](const Position& position, int axes) {{
      for (int axis = 0; axis < axes; axis++) row[column++] = position.env_coord(axis);
    }};
    for (auto team : {{&info.left_team, &info.right_team}}) {{
      for (bool directions : {{false, true}}) {{
        const int end = column + 2 * MAX_PLAYERS;
        for (auto& player : *team) write(directions ? player.player_direction : player.player_position, 2);
        while (column < end) row[column++] = -1.0f;
      }}
    }}
    write(info.ball_position, 3);
    write(info.ball_direction, 3);
    for (int owner = -1; owner < 2; owner++) row[column++] = info.ball_owned_team == owner;
    int* number = static_cast<int*>(numbers.buffer.buf);
    for (int value : {{info.ball_owned_team, info.ball_owned_player, info.left_goals, info.right_goals,
                      int(info.game_mode), info.step}}) {{
      *number++ = value;
    }}
    for (int agent = 0; agent < agents; agent++) {{
      float* const own = row + agent * columns;
      const int player = info.left_controllers.at(agent).controlled_player;
      if (agent) std::copy(row, row + active, own);
      for (column = active; column < mode; column++) own[column] = column - active == player;
      for (; column < columns; column++) own[column] = column - mode == info.game_mode;
      *number++ = player;
    }}
    return true;
  }}

{{}}""",
    ),
    Edit(
        PYTHON,
        '      .def("step", &GameEnv_Python::step_python)',
        '{}\n      .def("advance", &GameEnv_Python::advance_python)',
    ),
)

# The message of a fatal error is written before the crash that follows it.
ERRORS = (Edit(LOG, "    print_stacktrace();", "    fflush(stdout);\n{}"),)

EDITS = (*TEXT, *POSES, *SHARED, *TURNS, *CHOICE, *CAMERA, *RESETS, *DRAWING, *LOOP, *ERRORS)


def change(text: str, edit: Edit) -> str:
    """Return the text of a file after an edit.

    Args:
        text: the file's text.
        edit: the edit.

    Raises:
        ValueError: the fragment does not occur exactly once.
    """
    count = text.count(edit.fragment)
    if count != 1:
        raise ValueError(f"{edit.file} is not the file that the edits are for: it has {edit.fragment!r} {count} times")
    return text.replace(edit.fragment, edit.replacement.replace("{}", edit.fragment, 1))


def unpack(sdist: Path, folder: Path) -> None:
    """Unpack the published sources into `folder` and apply the edits.

    Args:
        sdist: gfootball's source archive as PyPI has it.
        folder: where the changed sources are to lie.

    Raises:
        ValueError: the archive or a file in it is not the one that the edits are for.
    """
    checksum = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if checksum != SHA256:
        raise ValueError(
            f"{sdist.name} is not the published source of gfootball {PUBLISHED}: its SHA-256 is {checksum}"
        )
    shutil.unpack_archive(sdist, folder)
    sources = folder / f"gfootball-{PUBLISHED}"
    for edit in EDITS:
        path = sources / ENGINE / edit.file
        path.write_text(change(path.read_text(), edit))
    setup = sources / "setup.py"
    setup.write_text(change(setup.read_text(), Edit("setup.py", f"version='{PUBLISHED}'", f"version='{VERSION}'")))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path, nargs="?")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--version", action="version", version=VERSION)
    options = parser.parse_args()
    if options.sdist is None or options.folder is None:
        parser.error("name the source archive and a folder")
    try:
        unpack(options.sdist, options.folder)
    except ValueError as error:
        sys.exit(f"headless_engine: {error}. The football engine was not built.")


if __name__ == "__main__":
    main()
